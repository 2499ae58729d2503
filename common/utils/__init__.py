"""Manifests, paths, files and other utilities, and the functions of `common.experiments`; loaded when first used."""

from importlib import import_module
from typing import Any

_MODULE_OF = {"get_logger": "common.utils.logging", "seed_everything": "common.utils.seeding"}


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(name)
    return getattr(import_module(_MODULE_OF.get(name, "common.experiments")), name)
