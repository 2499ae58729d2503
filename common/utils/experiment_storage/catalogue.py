"""The catalogue: one row per run and per metric, so that `--list` and `--best` answer at once."""

from __future__ import annotations

import json
import sqlite3
from functools import cached_property
from typing import Any, NamedTuple

from common.errors import ExperimentError, did_you_mean
from common.utils.experiment_storage.catalogue_cache import cache_path, open_cache, update_cache
from common.utils.experiment_storage.metrics import (
    MetricSummary,
    metric_direction,
    preferred_split,
)

_OLDEST_FIRST = "WHERE error IS NULL ORDER BY started_us, file"
_DISTINCT = "SELECT DISTINCT {0} FROM metrics {1} ORDER BY {0}"


class Broken(NamedTuple):
    """A file of the store that cannot be read, and why."""

    file: str
    error: str


class Overview(NamedTuple):
    """What a list shows of one run; `step` is the last one, `best_loss` of the split that judges it."""

    name: str
    status: str
    project: str
    started: str
    duration: float | None  # seconds
    parameters: int | None
    step: int | None
    best_loss: float | None
    tags: list[str]


class Catalogue:
    """The store as it is at this moment, brought up to date when it is made."""

    def __init__(self) -> None:
        self._database = open_cache()
        begun = "SELECT name FROM files WHERE status = 'finished' AND file LIKE '%.jsonl'"
        if names := [name for (name,) in self._query(begun)]:
            from common.utils.experiment_storage.run import complete_finish

            if any([complete_finish(name) for name in names]):
                update_cache(self._database)

    @cached_property
    def broken(self) -> list[Broken]:
        """The files that cannot be read."""
        rows = self._query("SELECT file, error FROM files WHERE error IS NOT NULL ORDER BY file")
        return [Broken(file, error) for file, error in rows]

    @cached_property
    def manifests(self) -> list[dict[str, Any]]:
        """The facts of every run with its `file`, oldest run first."""
        rows = self._query(f"SELECT file, manifest FROM files {_OLDEST_FIRST}")
        return [_manifest(*row) for row in rows]

    def manifest(self, name: str) -> dict[str, Any]:
        """The manifest of one experiment. Raises ExperimentError with the nearest name."""
        for manifest in self.manifests:
            if manifest["name"] == name:
                return manifest
        names = [manifest["name"] for manifest in self.manifests]
        hint = did_you_mean(name, names) if names else "there are no experiments yet"
        raise ExperimentError(f"there is no experiment '{name}'", hint)

    def overview(self) -> list[Overview]:
        """Every run, oldest first, without reading its whole manifest."""
        columns = "name, status, project, started, duration, parameters, step, best_loss, tags"
        rows = self._query(f"SELECT {columns} FROM files {_OLDEST_FIRST}")
        return [
            Overview(*(name, _status(status, name), *facts, json.loads(tags)))
            for name, status, *facts, tags in rows
        ]

    def summaries(self, metric: str | None = None) -> list[MetricSummary]:
        """Summaries of `metric`, or of every metric, by file and split."""
        condition, parameters = ("", ()) if metric is None else ("WHERE metric = ?", (metric,))
        rows = self._query(f"SELECT * FROM metrics {condition}", parameters)
        return [MetricSummary(*row) for row in rows]

    def _query(self, sql: str, parameters: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        try:
            return self._database.execute(sql, parameters).fetchall()
        except sqlite3.DatabaseError:  # a damaged page: the files are the truth, begin anew
            self._database.close()
            cache_path().unlink(missing_ok=True)
            self._database = open_cache()
            return self._database.execute(sql, parameters).fetchall()

    def best(
        self,
        metric: str,
        direction: str | None = None,
        split: str | None = None,
        top: int = -1,
    ) -> list[tuple[dict[str, Any], MetricSummary]]:
        """[(manifest, summary of the metric)] of the `top` runs (-1: all), diverged runs last.

        Ranks by the best finite value on `split` (see `preferred_split`). Raises ExperimentError for
        a metric or split nobody logged, and when it is not known whether more is better.
        """
        splits = [
            s for (s,) in self._query(_DISTINCT.format("split", "WHERE metric = ?"), (metric,))
        ]
        if not splits:
            names = [name for (name,) in self._query(_DISTINCT.format("metric", ""))]
            hint = did_you_mean(metric, names) if names else "there are no experiments yet"
            raise ExperimentError(f"no experiment has a metric '{metric}'", hint)
        direction = direction or metric_direction(metric)
        if direction is None:
            raise ExperimentError(
                f"is a higher or a lower '{metric}' better?", "add --max or --min"
            )
        split = split or preferred_split(splits)
        if split not in splits:
            raise ExperimentError(f"no '{metric}' on split '{split}'", did_you_mean(split, splits))
        value, order = ("minimum", "ASC") if direction == "min" else ("maximum", "DESC")
        rows = self._query(
            f"""SELECT * FROM metrics WHERE metric = ? AND split = ?
            ORDER BY {value} IS NULL, last IS NULL OR abs(last) = 9e999, {value} {order}, file
            LIMIT ?""",
            (metric, split, top),
        )
        ranked = [MetricSummary(*row) for row in rows]
        read = "SELECT file, manifest FROM files WHERE file = ?"
        return [(_manifest(*self._query(read, (s.file,))[0]), s) for s in ranked]


def _manifest(file: str, text: str) -> dict[str, Any]:
    manifest = json.loads(text)
    return {**manifest, "file": file, "status": _status(manifest["status"], manifest["name"])}


def _status(status: str, name: str) -> str:
    """`status` as it was logged, but `died` where it says running and no process holds the run."""
    if status != "running":
        return status
    # filelock takes 70 ms to import, so only where a run may be alive.
    from common.utils.experiment_storage.run import is_running

    return "running" if is_running(name) else "died"
