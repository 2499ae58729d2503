"""Raise SIGTERM as an exception, so that cleanup runs."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from common.errors import Interrupted


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Raise Interrupted on SIGTERM, so that cleanup runs."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        raise Interrupted("stopped", number)

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
