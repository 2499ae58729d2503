"""Handle SIGINT and SIGTERM (Ctrl-C, a cluster's notice) between two steps, when all can be saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # it imports torch
    from common.training.distributed import DistributedContext


@contextmanager
def stop_on_signals(context: DistributedContext) -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM, to be handled between two steps; a second one acts at once.

    With several processes it does not: on Ctrl-C they get one from the terminal and one from
    torchrun, which kills processes that do not end.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # Python delivers signals to the main thread only
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def receive(number: int, frame: object) -> None:
        received.append(number)
        if context.world_size > 1:
            return
        for each, handler in previous.items():
            signal.signal(each, handler)

    for number in previous:
        signal.signal(number, receive)
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
