"""The table of runs, as changes since the last response."""

from __future__ import annotations

import secrets
from threading import Lock
from typing import Any

from apps.dashboard import data

COLUMNS = (
    "name",
    "status",
    "project",
    "started",
    "duration",
    "parameters",
    "step",
    "best_loss",
    "split",
    "tags",
    "config_hash",
    "diverged",
)
_FACTS = COLUMNS.index("config_hash")  # before it, the fields of an Overview
_HASH_LENGTH = 12  # of 64, for display


class RunsTable:
    """The rows as last read, each with the revision of its last change."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._state: data.StoreState | None = None
        self._rows: dict[str, tuple[Any, ...]] = {}
        self._changed: dict[str, int] = {}
        self._removed: dict[str, int] = {}
        self._broken: list[list[str]] = []
        self._revision = 0
        self._server = secrets.token_hex(4)  # invalidates revisions of an earlier server

    def changes(self, since: str = "") -> dict[str, Any]:
        """{"revision", "columns": {column: values}, "removed", "broken", "complete"}.

        `since` is the revision of an earlier response. If it is unknown, the response is complete:
        all runs, replacing earlier ones.
        """
        with self._lock:
            self._refresh()
            server, _, number = since.partition("-")
            complete = server != self._server or not number.isdecimal()
            after = -1 if complete else int(number)
            rows = [row for name, row in self._rows.items() if self._changed[name] > after]
            columns = zip(*rows, strict=True) if rows else [()] * len(COLUMNS)
            return {
                "revision": f"{self._server}-{self._revision}",
                "complete": complete,
                "columns": dict(zip(COLUMNS, map(list, columns), strict=True)),
                "removed": [name for name, when in self._removed.items() if when > after],
                "broken": self._broken,
            }

    def config_hashes(self) -> dict[str, str]:
        """{name: hash} of all current runs."""
        with self._lock:
            self._refresh()
            position = COLUMNS.index("config_hash")
            return {name: row[position] for name, row in self._rows.items()}

    def _refresh(self) -> None:
        state = data.read_state()
        if state is not None and state == self._state:
            return
        runs = data.read_runs()
        self._state = state
        self._broken = [[broken.file, broken.error] for broken in runs.broken]
        rows = {
            run.name: (*run[:_FACTS], run.config_hash[:_HASH_LENGTH], run.name in runs.diverged)
            for run in runs.overview
        }
        revision = self._revision + 1
        changed = [name for name, row in rows.items() if self._rows.get(name) != row]
        gone = self._rows.keys() - rows.keys()
        if changed or gone:
            self._revision = revision
        self._changed = {name: self._changed.get(name, 0) for name in rows}
        self._changed.update(dict.fromkeys(changed, revision))
        self._removed |= dict.fromkeys(gone, revision)
        for name in changed:
            self._removed.pop(name, None)
        self._rows = rows
