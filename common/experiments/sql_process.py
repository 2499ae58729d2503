"""Processes that run SQL, so that any query can be stopped: DuckDB checks for interruption only
between chunks of rows, and a single call of `repeat` or `range` can produce gigabytes within one.

A process is reused for later queries. It is killed if a query times out or needs too much memory,
and exits with its parent.
"""

from __future__ import annotations

import atexit
import os
import pickle
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from common.errors import ExperimentError
from common.utils.paths import REPOSITORY_ROOT, get_assets_dir

_MOST_IDLE = 2
_LOOK_EVERY_SECONDS = 0.1  # interval of checks for `stop`
_COMMAND = f"""import sys
sys.path.insert(0, {str(REPOSITORY_ROOT)!r})
from common.experiments.sql_worker import serve
serve()"""


class Question(NamedTuple):
    """`form` is `rows` (pickled: the column names, then lists of rows) or `arrow` (an IPC stream)."""

    sql: str
    form: str
    limit: int | None  # rows
    memory_bytes: int | None  # None: half of the free memory


class QueryProcess:
    """One process. Its messages are pairs: begun, warning, part, done, error, fatal, system, bug; ended."""

    def __init__(self) -> None:
        # A new session: on Ctrl-C this process stops the query.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _COMMAND],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._messages: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self.is_idle = True
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        try:
            while True:
                self._messages.put(pickle.load(self._process.stdout))
        except (EOFError, pickle.UnpicklingError, ValueError, OSError):
            self._messages.put(("ended", None))

    def send(self, question: Question) -> None:
        """Ask `question`."""
        assert self._process.stdin is not None
        self.is_idle = False
        # The process may have another environment and current folder.
        environment = os.environ | {"RESEARCH_ASSETS_DIR": str(get_assets_dir())}
        pickle.dump((question, environment), self._process.stdin)
        self._process.stdin.flush()

    def receive(
        self, timeout_seconds: float | None, stop: threading.Event | None = None
    ) -> list[bytes]:
        """Yield the parts of the answer. Raises ExperimentError for an invalid query."""
        parts: list[bytes] = []
        deadline = None
        while True:
            if stop is not None and stop.is_set():
                raise ExperimentError("the query was stopped")
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            wait = left if stop is None else min(_LOOK_EVERY_SECONDS, left or _LOOK_EVERY_SECONDS)
            try:
                kind, content = self._messages.get(timeout=wait)
            except queue.Empty:
                kind, content = "waiting", None
            if kind == "part":
                parts.append(content)
            elif kind == "begun" and timeout_seconds is not None:
                deadline = time.monotonic() + timeout_seconds
            elif kind == "warning":
                from common.utils.logging import get_logger  # lazy: 10 ms

                get_logger("experiments").warning(content)
            elif kind in ("done", "error"):
                self.is_idle = True
                if kind == "done":
                    return parts
                raise ExperimentError(*content)
            elif kind == "fatal":
                raise ExperimentError(*content)
            elif kind == "system":
                raise OSError(*content)
            elif kind == "bug":
                raise RuntimeError(content)
            elif kind == "ended":
                raise ExperimentError(
                    f"the query process exited with status {self._process.wait()}",
                    "it may have run out of memory: query less",
                )
            if deadline is not None and time.monotonic() >= deadline:
                raise ExperimentError(
                    f"the query took longer than {timeout_seconds:g} seconds",
                    "query less, or allow more: --timeout SECONDS, timeout_seconds=",
                )

    def is_alive(self) -> bool:
        """Whether the process is running."""
        return self._process.poll() is None

    def kill(self) -> None:
        """End the process and wait for it."""
        with self._process:  # closes the pipes and waits
            self._process.kill()


_idle: list[QueryProcess] = []
if hasattr(os, "register_at_fork"):  # the child of a fork would share our pipes
    os.register_at_fork(after_in_child=_idle.clear)


@contextmanager
def asked(question: Question) -> Iterator[QueryProcess]:
    """Send `question` to a process; kill it unless it has answered by the end of the block."""
    process = _take()
    try:
        process.send(question)
        yield process
    finally:
        if process.is_idle and len(_idle) < _MOST_IDLE:
            _idle.append(process)
        else:
            process.kill()


def _take() -> QueryProcess:
    while _idle:
        if (process := _idle.pop()).is_alive():
            return process
    return QueryProcess()


@atexit.register
def _end_idle() -> None:
    while _idle:
        _idle.pop().kill()
