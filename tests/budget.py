"""How much is drawn, killed and cut: little in `make test`, all of it in `make attack`, by this one switch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import pytest
from hypothesis import settings

FULL = bool(os.environ.get("FULL_BUDGET"))  # `make attack` sets it
Amount = TypeVar("Amount")


def budget(small: Amount, full: Amount) -> Amount:
    """How often a test tries; a test that asks is marked `attack`, so that `make attack` runs it."""
    return full if FULL else small


def examples(full: int, **options: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """`full` examples of hypothesis in `make attack`, a fifth of them (at least 10) in `make test`."""
    number = budget(min(full, max(10, full // 5)), full)

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        limited: Callable[..., None] = settings(max_examples=number, deadline=None, **options)(test)
        return pytest.mark.attack(limited)

    return decorate


def repeat(
    names: str | tuple[str, ...], values: Iterable[Any], few: int = 1, **options: Any
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Parameters that repeat one idea: the first `few` of them in `make test`, all in `make attack`."""
    every = list(values)
    chosen = pytest.mark.parametrize(names, budget(every[:few], every), **options)

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        marked: Callable[..., None] = pytest.mark.attack(chosen(test))
        return marked

    return decorate
