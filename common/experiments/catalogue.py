"""The catalogue: one row per run and per metric, so that `--list` and `--best` answer at once."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from typing import Any, NamedTuple, NoReturn

from common.errors import ExperimentError, did_you_mean
from common.experiments.annotations import Annotation
from common.experiments.catalogue_cache import is_busy, open_cache, status_now
from common.experiments.metrics import (
    VAL_QUICK,
    MetricSummary,
    is_per_token,
    metric_direction,
    preferred_split,
)

_OLDEST_FIRST = "ORDER BY started_us, name"
_FACTS = (
    "SELECT name, file, manifest, tags, note, archived FROM experiments JOIN manifests USING (name)"
)
# Every experiment at this moment. `seconds` of work include those before a resume.
_NOW = """(SELECT *, CASE state WHEN 'running' THEN
    coalesce(duration, 0) + max(0, (julianday('now') - 2440587.5) * 86400.0 - since_us / 1e6)
    ELSE duration END
    AS seconds FROM (SELECT *, CASE status WHEN 'running' THEN status_now(status, file)
    ELSE status END AS state FROM experiments WHERE archived <= ?))"""
# For the table `metrics`; the parameter is the metric again.
_QUICK_ALONE = f"""split = '{VAL_QUICK}'
    AND name NOT IN (SELECT name FROM metrics WHERE metric = ? AND split = 'val')"""
# Losses of masked diffusion are upper bounds.
_IS_BOUND = "name IN (SELECT name FROM metrics WHERE metric = 'perplexity_bound')"
_IN_USE = "name NOT IN (SELECT name FROM experiments WHERE archived)"


class Broken(NamedTuple):
    """An unreadable file of the store, and the error."""

    file: str
    error: str


class Place(NamedTuple):
    """Location of an experiment: `file` relative to the store, its `id`, and `stored`, its name in
    the file, which differs from its shown name if another experiment has that."""

    name: str
    file: str
    id: str
    stored: str


class Copy(NamedTuple):
    """A file with a second copy of experiment `id`, which is also in the file `original`."""

    file: str
    original: str
    id: str


class Overview(NamedTuple):
    """A run in a list; `step` is the last one, `best_loss` the best on `split`, the main split of
    the run: `val_quick` (see Trainer) until its whole validation split has been evaluated.

    Seeds of one configuration have the same `config_hash`.
    """

    name: str
    status: str
    project: str
    started: str
    duration: float | None  # seconds
    parameters: int | None
    step: int | None
    best_loss: float | None
    split: str | None
    tags: list[str]
    note: str
    archived: bool
    config_hash: str


class Catalogue:
    """The store at this moment, read-only: unfinished work of killed processes is shown as it is;
    `open_catalogue` (recovery.py) finishes it.

    Args:
        refresh: also write the cache, so that the next one opens faster.

    Archived experiments are found only by name, unless requested.
    """

    def __init__(self, *, refresh: bool = False) -> None:
        self._refresh = refresh
        self._database = open_cache(refresh=refresh)

    def begun_finishes(self) -> list[str]:
        """Finished runs whose logs have not been converted to files yet."""
        begun = "SELECT stored FROM experiments WHERE status = 'finished' AND file LIKE '%.jsonl'"
        return [name for (name,) in self._query(begun)]

    @cached_property
    def broken(self) -> list[Broken]:
        """The unreadable files."""
        rows = self._query("SELECT file, error FROM files WHERE error IS NOT NULL ORDER BY file")
        return [Broken(file, error) for file, error in rows]

    def __contains__(self, name: str) -> bool:
        return self.file_of(name) is not None

    def file_of(self, name: str) -> str | None:
        """The file of the experiment, relative to the store."""
        rows = self._query("SELECT file FROM experiments WHERE name = ?", (name,))
        return rows[0][0] if rows else None

    def place(self, name: str) -> Place:
        """Location of one experiment. Raises ExperimentError with the nearest name."""
        found = self.places("name = ?", name)
        return found[0] if found else self._unknown(name)

    def places(self, where: str = "TRUE", *parameters: str) -> list[Place]:
        """Locations of all experiments, or of those that match the SQL `where` over `name`, `file`,
        `id`, `stored`."""
        rows = self._query(
            f"SELECT name, file, id, stored FROM experiments WHERE {where} ORDER BY name",
            parameters,
        )
        return [Place(*row) for row in rows]

    def copies(self) -> list[Copy]:
        """Files with copies of experiments stored elsewhere; each experiment counts once."""
        rows = self._query("SELECT file, original, id FROM copies ORDER BY file")
        return [Copy(*row) for row in rows]

    def names_apart(self) -> dict[str, dict[str, str]]:
        """{Parquet file: {name in it: name of the experiment}} for files whose name or rows do not
        give the names of their experiments, or which of them count."""
        rows = self._query("""SELECT file, stored, name FROM experiments WHERE file IN (
                SELECT file FROM experiments WHERE name <> stored
                UNION SELECT file FROM copies
                UNION SELECT file FROM experiments WHERE file NOT LIKE 'packs/%' AND file LIKE '%@%')
            AND file LIKE '%.parquet' ORDER BY file""")
        files: dict[str, dict[str, str]] = {}
        for file, stored, name in rows:
            files.setdefault(file, {})[stored] = name
        return files

    def files(self) -> list[str]:
        """Every file that holds experiments."""
        return [file for (file,) in self._query("SELECT DISTINCT file FROM experiments")]

    def hiding_nan(self) -> set[str]:
        """Files of an earlier version with a NaN that their statistics omit."""
        return {file for (file,) in self._query("SELECT file FROM files WHERE hides_nan")}

    def packed(self) -> dict[str, str]:
        """{experiment: its pack, relative to the store}"""
        packed = "SELECT name, file FROM experiments WHERE file LIKE 'packs/%'"
        return dict(self._query(packed))

    def replaced_packs(self) -> list[str]:
        """Names of packs that other packs replace."""
        rows = self._query("SELECT replaces FROM files WHERE replaces <> '[]'")
        return [pack for (replaces,) in rows for pack in json.loads(replaces)]

    def names(self) -> list[str]:
        """The name of every experiment, oldest first."""
        return [name for (name,) in self._query(f"SELECT name FROM experiments {_OLDEST_FIRST}")]

    @cached_property
    def manifests(self) -> list[dict[str, Any]]:
        """The facts of every run, archived ones included, with its `file`; oldest run first."""
        rows = self._query(f"{_FACTS} {_OLDEST_FIRST}")
        return [_manifest(*row) for row in rows]

    def manifest(self, name: str) -> dict[str, Any]:
        """The manifest of one experiment. Raises ExperimentError with the nearest name."""
        rows = self._query(f"{_FACTS} WHERE name = ?", (name,))
        return _manifest(*rows[0]) if rows else self._unknown(name)

    def _unknown(self, name: str) -> NoReturn:
        names = self.names()
        hint = did_you_mean(name, names) if names else "there are no experiments yet"
        raise ExperimentError(f"there is no experiment '{name}'", hint)

    def annotation(self, name: str) -> Annotation:
        """Tags, note and archive mark of one experiment."""
        manifest = self.manifest(name)
        return Annotation(*(manifest[key] for key in Annotation._fields))

    def overview(self, archived: bool = False) -> list[Overview]:
        """Every run, oldest first, without reading its whole manifest."""
        rows = self._query(
            f"""SELECT name, state, project, started, seconds, parameters, step, best_loss, split, tags, note,
            archived, config_hash FROM {_NOW} {_OLDEST_FIRST}""",
            (archived,),
        )
        return [
            Overview(*(*facts, json.loads(tags), note, bool(kept), key))
            for *facts, tags, note, kept, key in rows
        ]

    def listing(self, archived: bool = False) -> list[list[object]]:
        """`overview` up to the tags, formatted for display in local time: SQLite formats it fastest."""
        rows = self._query(
            f"""SELECT name, state, project,
            strftime('%Y-%m-%d %H:%M', started_us / 1000000, 'unixepoch', 'localtime'),
            CASE WHEN whole IS NULL THEN NULL WHEN whole < 60 THEN printf('%ds', whole)
                 WHEN whole < 3600 THEN printf('%dm%02ds', whole / 60, whole % 60)
                 ELSE printf('%dh%02dm', whole / 3600, whole / 60 % 60) END,
            parameters, step, best_loss, split, tags
            FROM (SELECT *, CAST(round(seconds) AS INTEGER) AS whole FROM {_NOW}) {_OLDEST_FIRST}""",
            (archived,),
        )
        tags = {text: ", ".join(json.loads(text)) for text in {row[-1] for row in rows}}
        return [[*row[:-1], tags[row[-1]]] for row in rows]

    def summaries(self, metric: str | None = None, name: str | None = None) -> list[MetricSummary]:
        """Summaries of one or all metrics of one or all active experiments."""
        conditions = [f"{key} = ?" for key, value in (("metric", metric), ("name", name)) if value]
        conditions += [] if name else [_IN_USE]
        parameters = tuple(value for value in (metric, name) if value)
        where = " AND ".join(conditions)
        rows = self._query(f"SELECT * FROM metrics WHERE {where}", parameters)
        return [MetricSummary(*row) for row in rows]

    def kept_text(self, key: str, write: Callable[[], str]) -> str:
        """Cache the result of `write` until a file of the store changes.

        Not cached while a run is live, since its duration changes.
        """
        live = self._query("SELECT file FROM experiments WHERE status = 'running'")
        if any(status_now("running", file) == "running" for (file,) in live):
            return write()
        ((number,),) = self._query("SELECT number FROM changes")
        numbered = f"{number} {key}"  # never read a late write of another process
        if kept := self._query("SELECT text FROM texts WHERE key = ?", (numbered,)):
            return str(kept[0][0])
        text = write()
        with suppress(sqlite3.OperationalError), self._database:  # full, busy or read-only
            self._database.execute("INSERT OR REPLACE INTO texts VALUES (?, ?)", (numbered, text))
        return text

    def statuses(self) -> dict[str, int]:
        """{status: number of experiments}"""
        counted = f"SELECT state, count(*) FROM {_NOW} GROUP BY state"
        return dict(self._query(counted, (False,)))

    def counts(self) -> list[tuple[str, str, int, int]]:
        """(metric, split, number of experiments, number of values), sorted."""
        counted = "SELECT metric, split, count(*), sum(num_values) FROM metrics"
        return self._query(f"{counted} WHERE {_IN_USE} GROUP BY metric, split")

    def metrics(self) -> list[str]:
        """The name of every metric, sorted."""
        return self._distinct("metric", "TRUE", ())

    def splits(self, metric: str) -> list[str]:
        """Every split that `metric` was logged on, sorted."""
        return self._distinct("split", "metric = ?", (metric,))

    def _distinct(self, column: str, where: str, parameters: tuple[str, ...]) -> list[str]:
        # Skip from value to value by the index: DISTINCT would scan every run.
        rows = self._query(
            f"""WITH RECURSIVE found(value) AS (
                SELECT min({column}) FROM metrics WHERE {where}
                UNION ALL SELECT (SELECT min({column}) FROM metrics WHERE {where} AND {column} > value)
                FROM found WHERE value IS NOT NULL)
            SELECT value FROM found WHERE value IS NOT NULL""",
            parameters * 2,
        )
        return [value for (value,) in rows]

    def _query(self, sql: str, parameters: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        try:
            return self._database.execute(sql, parameters).fetchall()
        except sqlite3.DatabaseError as error:
            self._database.close()
            # A damaged page: rebuild from the files.
            self._database = open_cache(refresh=self._refresh, damaged=not is_busy(error))
            return self._database.execute(sql, parameters).fetchall()

    def best(
        self,
        metric: str,
        direction: str | None = None,
        split: str | None = None,
        top: int = -1,
    ) -> list[tuple[dict[str, Any], MetricSummary]]:
        """[(manifest, summary of the metric)] of the `top` runs (-1: all), diverged runs last.

        Rank by the best finite value on `split` (None: see `preferred_split`). If that defaults to
        `val`, runs with a value on `val_quick` only (unfinished ones) follow those with a value on
        `val`: a loss over few batches can be far below that of the whole split. `split="val_quick"`
        ranks all runs by few batches. Upper bounds of a loss (masked diffusion) follow the losses.

        Raises ExperimentError for an unknown metric or split, or an unknown direction of the
        metric.
        """
        splits = self.splits(metric)
        if not splits:
            names = self.metrics()
            hint = did_you_mean(metric, names) if names else "there are no experiments yet"
            raise ExperimentError(f"no experiment has a metric '{metric}'", hint)
        direction = direction or metric_direction(metric)
        if direction is None:
            raise ExperimentError(
                f"is a higher or a lower '{metric}' better?", "add --max or --min"
            )
        quick_too = split is None
        split = split or preferred_split(splits)
        if split not in splits:
            raise ExperimentError(f"no '{metric}' on split '{split}'", did_you_mean(split, splits))
        bounds_last = _IS_BOUND if is_per_token(metric) else "NULL"
        value, order = ("minimum", "ASC") if direction == "min" else ("maximum", "DESC")
        rows = self._query(
            f"""SELECT * FROM metrics WHERE metric = ? AND {_IN_USE}
            AND (split = ? OR ? AND {_QUICK_ALONE})
            ORDER BY {bounds_last}, {value} IS NULL, last IS NULL OR abs(last) = 9e999, split <> ?, {value} {order}, name
            LIMIT ?""",
            (metric, split, quick_too and split == "val", metric, split, top),
        )
        ranked = [MetricSummary(*row) for row in rows]
        return [(self.manifest(summary.name), summary) for summary in ranked]

    def quick_alone(self, metric: str) -> list[str]:
        """Runs that have `metric` on `val_quick`, but not on `val`."""
        rows = self._query(
            f"SELECT name FROM metrics WHERE metric = ? AND {_QUICK_ALONE} AND {_IN_USE} ORDER BY name",
            (metric, metric),
        )
        return [name for (name,) in rows]


def _manifest(
    name: str, file: str, text: str, tags: str, note: str, archived: int
) -> dict[str, Any]:
    manifest = json.loads(text) | {"name": name}
    status = status_now(manifest["status"], file)
    annotation = {"tags": json.loads(tags), "note": note, "archived": bool(archived)}
    return {**manifest, **annotation, "file": file, "status": status}
