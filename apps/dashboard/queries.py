"""The SQL of the page: two queries at a time, the others in line, and none whose asker has left."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

from fastapi import Request, Response

from common.errors import ExperimentError
from common.experiments.sql import query_rows

AT_ONCE = 2
MOST_IN_LINE = 8
MEMORY_BYTES = 2**30  # of each; a quarter of it may be result
_LOOK_EVERY_SECONDS = 0.2  # whether the asker is still there

Answer = Callable[[list[str], list[list[Any]]], Response]


class Queries:
    """Threads of their own run the queries, so that the rest of the page answers meanwhile."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(AT_ONCE, "sql")
        self._asked = 0

    async def run(self, sql: str, request: Request, answer: Answer) -> Response:
        """What `answer` makes of the columns and rows of `sql`.

        Raises ExperimentError as `query_rows`, and when too many are in line. The query ends when
        the client of `request` leaves.
        """
        if self._asked >= AT_ONCE + MOST_IN_LINE:
            raise ExperimentError(
                f"{self._asked} queries are being answered already", "wait for one of them to end"
            )
        stop = Event()

        def work() -> Response:
            return answer(*query_rows(sql, memory_bytes=MEMORY_BYTES, stop=stop))

        self._asked += 1
        running = asyncio.get_running_loop().run_in_executor(self._threads, work)
        running.add_done_callback(self._forget)
        leaving = asyncio.create_task(_until_gone(request))
        try:
            either: list[asyncio.Future[Any]] = [running, leaving]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                return Response(status_code=499)  # nobody reads it
            return await running
        finally:
            stop.set()
            running.cancel()  # where it has not begun
            leaving.cancel()

    def _forget(self, running: asyncio.Future[Response]) -> None:
        self._asked -= 1
        if not running.cancelled():
            running.exception()  # of a query that was stopped: told to nobody


async def _until_gone(request: Request) -> None:
    while not await request.is_disconnected():
        await asyncio.sleep(_LOOK_EVERY_SECONDS)
