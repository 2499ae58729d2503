"""The catalogue: one row per run and per metric, so that `--list` and `--best` answer at once.

A SQLite cache of what the files say. It can be deleted at any time: every file whose size or time
has changed is read again, and an unusable cache is rebuilt. Broken files are kept with their error,
so that they are named and all others stay readable.
"""

from __future__ import annotations

import json
import math
import os
import re
import sqlite3
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from common.errors import ExperimentError, did_you_mean
from common.utils.experiment_storage.log import read_log
from common.utils.experiment_storage.store import (
    ANNOTATIONS_ENDING,
    FIXED_COLUMNS,
    FOOTER_KEY,
    annotations_path,
)
from common.utils.manifest import check_manifest
from common.utils.paths import get_experiments_dir

_SCHEMA_VERSION = 2
_SCHEMA = f"""
DROP TABLE IF EXISTS files;
DROP TABLE IF EXISTS metrics;
CREATE TABLE files (file TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER, error TEXT, name TEXT,
    status TEXT, project TEXT, started TEXT, started_us INTEGER, duration REAL, parameters INTEGER,
    step INTEGER, best_loss REAL, tags TEXT, manifest TEXT);
CREATE TABLE metrics (file TEXT, split TEXT, metric TEXT, num_values INTEGER, first REAL, last REAL,
    minimum REAL, maximum REAL, minimum_step INTEGER, maximum_step INTEGER, last_step INTEGER,
    non_finite INTEGER, PRIMARY KEY (metric, split, file)) WITHOUT ROWID;
CREATE INDEX metrics_of_file ON metrics (file);
PRAGMA user_version = {_SCHEMA_VERSION};
"""
_LOWER_IS_BETTER = re.compile(
    r"(^|_)(loss|perplexity|ppl|error|bits|nats|bpb|bpc|entropy|seconds|time|memory|mae|mse|rmse|wer|cer)(_|$)"
)
_HIGHER_IS_BETTER = re.compile(
    r"(^|_)(accuracy|acc|f1|bleu|rouge|auc|mfu|precision|recall|r2|throughput|tokens_per_second)(_|$)"
)
_OLDEST_FIRST = "WHERE error IS NULL ORDER BY started_us, file"
_DISTINCT = "SELECT DISTINCT {0} FROM metrics {1} ORDER BY {0}"
_SPLIT_ORDER = ("test", "val", "validation", "train")


class MetricSummary(NamedTuple):
    """One metric of one split of one run. `minimum` and `maximum` are over finite values only."""

    file: str
    split: str
    metric: str
    num_values: int
    first: float | None
    last: float | None
    minimum: float | None
    maximum: float | None
    minimum_step: int | None
    maximum_step: int | None
    last_step: int
    non_finite: int

    @property
    def diverged(self) -> bool:
        """Whether the last value is NaN or infinite (SQLite holds NaN as NULL)."""
        return self.last is None or math.isinf(self.last)

    def best(self, direction: str) -> float | None:
        return self.minimum if direction == "min" else self.maximum

    def best_step(self, direction: str) -> int | None:
        return self.minimum_step if direction == "min" else self.maximum_step


class Broken(NamedTuple):
    """A file of the store that cannot be read, and why."""

    file: str
    error: str


def metric_direction(metric: str) -> str | None:
    """`min` where lower is known to be better, `max` where higher is, else None."""
    if _HIGHER_IS_BETTER.search(metric.lower()):
        return "max"
    return "min" if _LOWER_IS_BETTER.search(metric.lower()) else None


def preferred_split(splits: Iterable[str]) -> str:
    """The split that judges a run: test before val before train before any other."""
    found = sorted(set(splits))
    return next((split for split in _SPLIT_ORDER if split in found), found[0])


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
        self._database = _open()
        begun = "SELECT name FROM files WHERE status = 'finished' AND file LIKE '%.jsonl'"
        if names := [name for (name,) in self._query(begun)]:
            from common.utils.experiment_storage.run import complete_finish

            if any([complete_finish(name) for name in names]):
                _update(self._database)

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
            _cache_path().unlink(missing_ok=True)
            self._database = _open()
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


def _cache_path() -> Path:
    return get_experiments_dir() / ".catalogue.sqlite"


def _open() -> sqlite3.Connection:
    """The cache, brought up to date; made again when it is damaged, in memory when it cannot be written."""
    path = _cache_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return _connect(str(path))
    except sqlite3.DatabaseError:
        with suppress(OSError):  # a store on a read-only disk can still be read, only slower
            path.unlink(missing_ok=True)
    try:
        return _connect(str(path))
    except sqlite3.DatabaseError:
        return _connect(":memory:")


def _connect(path: str) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=30)
    if database.execute("PRAGMA user_version").fetchone()[0] != _SCHEMA_VERSION:
        database.executescript(_SCHEMA)
    _update(database)
    return database


def _update(database: sqlite3.Connection) -> None:
    """Read the files that are new or changed, forget those that are gone."""
    with database:
        while True:
            try:
                return _read_changes(database)
            except FileNotFoundError:
                pass  # a run was finished or deleted in this moment: look again


def _read_changes(database: sqlite3.Connection) -> None:
    known = {
        file: (size, mtime_ns)
        for file, size, mtime_ns in database.execute("SELECT file, size, mtime_ns FROM files")
    }
    present = _scan()
    for file in known.keys() - present.keys():
        _forget(database, file)
    for file, stamp in present.items():
        if known.get(file) != stamp:
            _forget(database, file)
            _read_into(database, file, stamp)


def _scan() -> dict[str, tuple[int, int]]:
    """{file name: (size, mtime_ns)}; a log beside its finished Parquet file does not count."""
    present = {}
    # The logs first: a run that is finished in between is seen as its log, its file, or both.
    for ending in (".jsonl", ".parquet", ANNOTATIONS_ENDING):
        with os.scandir(get_experiments_dir()) as entries:
            for entry in entries:
                if entry.name.endswith(ending) and not entry.name.startswith("."):
                    status = entry.stat()
                    present[entry.name] = (status.st_size, status.st_mtime_ns)
    experiments = {}
    for file, (size, mtime_ns) in present.items():
        name, _, ending = file.rpartition(".")
        if ending == "json" or (ending == "jsonl" and f"{name}.parquet" in present):
            continue
        # Changed tags and notes change the stamp of their experiment.
        more, later = present.get(f"{name}{ANNOTATIONS_ENDING}", (0, 0))
        experiments[file] = (size + more, max(mtime_ns, later))
    return experiments


def _forget(database: sqlite3.Connection, file: str) -> None:
    database.execute("DELETE FROM files WHERE file = ?", (file,))
    database.execute("DELETE FROM metrics WHERE file = ?", (file,))


def _read_into(database: sqlite3.Connection, file: str, stamp: tuple[int, int]) -> None:
    path = get_experiments_dir() / file
    try:
        manifest, rows = _read_parquet(path) if file.endswith(".parquet") else _read_live(path)
        if manifest is None:
            return
        if check_manifest(manifest)["name"] != path.stem:
            raise ValueError(f"it is a copy of '{manifest['name']}' under another name")
        manifest |= _read_annotations(path.stem)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        _insert(database, "files", (file, *stamp, reason, *[None] * 11))
        return
    summaries = _summarise(file, rows)
    for summary in summaries:
        _insert(database, "metrics", summary)
    _insert(database, "files", (file, *stamp, None, *_facts(manifest, summaries)))


def _insert(database: sqlite3.Connection, table: str, row: tuple[object, ...]) -> None:
    database.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)


def _facts(manifest: dict[str, Any], summaries: list[MetricSummary]) -> tuple[object, ...]:
    """The columns of `files` from `name` on."""
    losses = {s.split: s.minimum for s in summaries if s.metric == "loss"}
    return (
        *(manifest[key] for key in ("name", "status", "project", "started")),
        int(datetime.fromisoformat(manifest["started"]).timestamp() * 1e6),
        manifest["duration"],
        manifest["parameters"],
        max((summary.last_step for summary in summaries), default=None),
        losses[preferred_split(losses)] if losses else None,
        json.dumps(manifest["tags"]),
        json.dumps(manifest),
    )


def _read_annotations(name: str) -> dict[str, Any]:
    path = annotations_path(name)
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_bytes())
        tags, note = found["tags"], found["note"]
        if not (
            isinstance(note, str)
            and isinstance(tags, list)
            and all(isinstance(t, str) for t in tags)
        ):
            raise ValueError("tags and note must be texts")
        return {"tags": list(tags), "note": note}
    except (ValueError, KeyError, TypeError) as error:
        from common.utils.logging import get_logger  # with logging, 15 ms

        get_logger("experiments").warning(f"left out {path.name}: it is damaged ({error!r})")
        return {}


class _Rows(NamedTuple):
    """The rows of a run by column; None where a metric was not logged."""

    steps: list[int]
    splits: list[str]
    metrics: dict[str, list[float | None]]


def _read_live(path: Path) -> tuple[dict[str, Any] | None, _Rows]:
    content = read_log(path)
    rows = content.rows
    names = dict.fromkeys(name for row in rows for name in row["metrics"])
    columns = {name: [row["metrics"].get(name) for row in rows] for name in names}
    by_column = _Rows([row["step"] for row in rows], [row["split"] for row in rows], columns)
    if not content.manifest and not rows and not content.damaged_lines:
        return None, by_column  # a name that was claimed a moment ago
    if "name" not in content.manifest:
        raise ValueError("its first record is damaged")
    return content.manifest, by_column


def _read_parquet(path: Path) -> tuple[dict[str, Any], _Rows]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            table = file.read(use_threads=False)  # small ones are read faster so
    except pa.ArrowException as error:
        raise ValueError(str(error)) from error
    manifest = json.loads((table.schema.metadata or {}).get(FOOTER_KEY, b"null"))
    if manifest is None:
        raise ValueError("not an experiment of this store (its footer holds no manifest)")
    kinds = {"experiment_name": pa.string(), "step": pa.int64(), "split": pa.string()}
    for column in dict.fromkeys([*FIXED_COLUMNS, *table.column_names]):
        if column not in table.column_names:
            raise ValueError(f"it has no column '{column}'")
        if (found := table.schema.field(column).type) != kinds.get(column, pa.float64()):
            raise ValueError(f"its column '{column}' has the type {found}")
        if column in kinds and table[column].null_count:
            raise ValueError(f"its column '{column}' has empty cells")
    metrics = [name for name in table.column_names if name not in FIXED_COLUMNS]
    columns = {name: table[name].to_pylist() for name in metrics}
    return manifest, _Rows(table["step"].to_pylist(), table["split"].to_pylist(), columns)


def _summarise(file: str, rows: _Rows) -> list[MetricSummary]:
    summaries = []
    for split in dict.fromkeys(rows.splits):
        chosen = [index for index, other in enumerate(rows.splits) if other == split]
        for metric, column in rows.metrics.items():
            points = [(column[i], rows.steps[i]) for i in chosen]
            logged = [(value, step) for value, step in points if value is not None]
            if logged:
                summaries.append(_summary(file, split, metric, logged))
    return summaries


def _summary(file: str, split: str, metric: str, points: list[tuple[float, int]]) -> MetricSummary:
    """Of (value, step) in the order they were logged."""
    finite = [point for point in points if math.isfinite(point[0])]
    low, low_step = min(finite, default=(None, None))
    high, high_step = max(finite, key=itemgetter(0), default=(None, None))
    (first, _), (last, last_step) = points[0], points[-1]
    extremes = (low, high, low_step, high_step, last_step, len(points) - len(finite))
    return MetricSummary(file, split, metric, len(points), first, last, *extremes)


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
