"""SQL queries of the page: two at a time, the others queued, cancelled when the client disconnects."""

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
MEMORY_BYTES = 2**30  # per query; at most a quarter for the result
_LOOK_EVERY_SECONDS = 0.2  # interval of checks for a disconnected client

Answer = Callable[[list[str], list[list[Any]]], Response]


class Queries:
    """Runs queries in separate threads, so that the page remains responsive."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(AT_ONCE, "sql")
        self._asked = 0

    async def run(self, sql: str, request: Request, answer: Answer) -> Response:
        """Run `sql` and return the result of `answer` on its columns and rows.

        Raises ExperimentError like `query_rows`, and if too many queries are queued. The query is
        cancelled when the client of `request` disconnects.
        """
        if self._asked >= AT_ONCE + MOST_IN_LINE:
            raise ExperimentError(
                f"{self._asked} queries are already running", "wait for one of them to finish"
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
                return Response(status_code=499)  # client closed request
            return await running
        finally:
            stop.set()
            running.cancel()  # if it has not started
            leaving.cancel()

    def _forget(self, running: asyncio.Future[Response]) -> None:
        self._asked -= 1
        if not running.cancelled():
            running.exception()  # retrieve and ignore the error of a cancelled query


async def _until_gone(request: Request) -> None:
    while not await request.is_disconnected():
        await asyncio.sleep(_LOOK_EVERY_SECONDS)
