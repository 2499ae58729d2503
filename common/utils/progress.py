"""Log the progress of long operations, for terminals, files and pipes alike."""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from common.utils.logging import get_logger

T = TypeVar("T")
EVERY_SECONDS = 10.0


def with_progress(
    items: Iterable[T],
    what: str,
    *,
    amount: Callable[[T], float] = lambda item: 1,
    total: float | None = None,
    unit: str = "batches",
) -> Iterator[T]:
    """Yield `items`, and log the progress every ten seconds.

    Args:
        amount: size of an item, in `unit`.
        total: the sum of all amounts; None: the length of `items`, if known.
    """
    total = operator.length_hint(items) if total is None else total
    started = last = time.monotonic()
    done = 0.0
    for item in items:
        now = time.monotonic()
        if done and now - last >= EVERY_SECONDS:
            last = now
            of = f" of {total:,.0f}" if total else ""
            left = time_left(now - started, done, total)
            get_logger("progress").info(f"{what}: {done:,.0f}{of} {unit}{left and f', {left}'}")
        yield item
        done += amount(item)


def time_left(seconds: float, done: float, total: float) -> str:
    """ "5 min left" after `done` of `total` parts took `seconds`; "" if unknown."""
    if not 0 < done < total:
        return ""
    left = seconds / done * (total - done)
    if left < 99.5:
        return f"{left:.0f} s left"
    return f"{left / 60:.0f} min left" if left < 99.5 * 60 else f"{left / 3600:.1f} h left"
