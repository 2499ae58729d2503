"""Import optional packages on use, with a clear error if they are missing."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from common.errors import MissingPackageError


def require(package: str, extra: str) -> Any:
    """Import a package, without its types. Raises MissingPackageError that names the `extra` to install."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingPackageError(
            f"the package {package.partition('.')[0]} is not installed",
            f'install it: uv pip install -e ".[{extra}]"',
        ) from error


def missing_packages(packages: Sequence[str]) -> list[str]:
    """Those of `packages` that are not installed; imports none."""
    return [package for package in packages if find_spec(package) is None]
