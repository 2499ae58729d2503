"""Every public function and method of the library says what it does."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any

import common


def public_functions(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """(name, function) of those that `module` defines: no leading underscore, no override, no
    member of a Protocol, and no property that the docstring of its class names."""
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(inspect.unwrap(value) if callable(value) else value):
            yield name, inspect.unwrap(value)
        elif inspect.isclass(value) and not getattr(value, "_is_protocol", False):
            yield from public_methods(value)


def public_methods(kind: type) -> Iterator[tuple[str, Any]]:
    inherited = {name for base in kind.__mro__[1:] for name in vars(base)}
    for name, member in vars(kind).items():
        if name.startswith("_") or name in inherited:
            continue
        is_named = isinstance(member, property) and name in (kind.__doc__ or "")
        if (
            isinstance(member, FunctionType | classmethod | staticmethod | property)
            and not is_named
        ):
            yield f"{kind.__qualname__}.{name}", member


def test_public_functions_of_the_library_have_docstrings() -> None:
    names = [each.name for each in pkgutil.walk_packages(common.__path__, "common.")]
    found = {
        f"{module}.{name}": function
        for module in names
        for name, function in public_functions(importlib.import_module(module))
    }
    assert {"common.data.prepare.prepare", "common.training.trainer.Trainer.fit"} <= found.keys()
    assert not [name for name, function in found.items() if not function.__doc__]
