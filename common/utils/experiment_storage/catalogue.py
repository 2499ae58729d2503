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
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from common.errors import ExperimentError, did_you_mean
from common.utils.experiment_storage.log import read_log
from common.utils.experiment_storage.store import (
    ANNOTATIONS_ENDING,
    FIXED_COLUMNS,
    FOOTER_KEY,
    annotations_path,
)
from common.utils.logging import get_logger
from common.utils.manifest import check_manifest
from common.utils.paths import get_experiments_dir

_SCHEMA_VERSION = 1
_SCHEMA = f"""
DROP TABLE IF EXISTS files;
DROP TABLE IF EXISTS metrics;
CREATE TABLE files (file TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER, manifest TEXT, error TEXT);
CREATE TABLE metrics (file TEXT, split TEXT, metric TEXT, count INTEGER, first REAL, last REAL,
    minimum REAL, maximum REAL, minimum_step INTEGER, maximum_step INTEGER, last_step INTEGER,
    non_finite INTEGER, PRIMARY KEY (file, split, metric)) WITHOUT ROWID;
CREATE INDEX metrics_by_name ON metrics (metric);
PRAGMA user_version = {_SCHEMA_VERSION};
"""
_LOWER_IS_BETTER = re.compile(
    r"(^|_)(loss|perplexity|ppl|error|bits|nats|bpb|bpc|entropy|seconds|time|memory|mae|mse|rmse|wer|cer)(_|$)"
)
_HIGHER_IS_BETTER = re.compile(
    r"(^|_)(accuracy|acc|f1|bleu|rouge|auc|mfu|precision|recall|r2|throughput|tokens_per_second)(_|$)"
)
_SPLIT_ORDER = ("test", "val", "validation", "train")


@dataclass(frozen=True)
class MetricSummary:
    """One metric of one split of one run. `minimum` and `maximum` are over finite values only."""

    file: str
    split: str
    metric: str
    count: int
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


@dataclass(frozen=True)
class Broken:
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


class Catalogue:
    """The store as it is at this moment: `manifests`, oldest run first, and the `broken` files.

    A manifest's `file` is its file's name; the status of a run whose process is gone is `died`.
    """

    def __init__(self) -> None:
        self._database = _open()
        self._load()
        begun = [m["name"] for m in self.manifests if m["status"] == "finished" and _is_log(m)]
        if begun:
            from common.utils.experiment_storage.run import complete_finish

            if any([complete_finish(name) for name in begun]):
                _update(self._database)
                self._load()

    def _load(self) -> None:
        rows = self._query("SELECT file, manifest, error FROM files ORDER BY file")
        self.manifests: list[dict[str, Any]] = []
        self.broken: list[Broken] = []
        for file, text, error in rows:
            if error:
                self.broken.append(Broken(file, error))
                continue
            manifest = json.loads(text) | {"file": file}
            if manifest["status"] == "running":
                manifest["status"] = _live_status(manifest["name"])
            self.manifests.append(manifest)
        self.manifests.sort(key=lambda manifest: datetime.fromisoformat(manifest["started"]))

    def manifest(self, name: str) -> dict[str, Any]:
        """The manifest of one experiment. Raises ExperimentError with the nearest name."""
        for manifest in self.manifests:
            if manifest["name"] == name:
                return manifest
        names = [manifest["name"] for manifest in self.manifests]
        hint = did_you_mean(name, names) if names else "there are no experiments yet"
        raise ExperimentError(f"there is no experiment '{name}'", hint)

    def summaries(self, metric: str | None = None) -> list[MetricSummary]:
        """Summaries of `metric`, or of every metric, by file and split."""
        condition, parameters = ("", ()) if metric is None else ("WHERE metric = ?", (metric,))
        rows = self._query(f"SELECT * FROM metrics {condition}", parameters)
        return [MetricSummary(*row) for row in rows]

    def _query(self, sql: str, parameters: tuple[str, ...] = ()) -> list[tuple[Any, ...]]:
        try:
            return self._database.execute(sql, parameters).fetchall()
        except sqlite3.DatabaseError:  # a damaged page: the files are the truth, begin anew
            self._database.close()
            _cache_path().unlink(missing_ok=True)
            self._database = _open()
            return self._database.execute(sql, parameters).fetchall()

    def best(
        self, metric: str, direction: str | None = None, split: str | None = None
    ) -> list[tuple[dict[str, Any], MetricSummary]]:
        """[(manifest, summary of the metric)], the best run first, diverged runs last.

        Ranks by the best finite value on `split` (see `preferred_split`). Raises ExperimentError for
        a metric or split nobody logged, and when it is not known whether more is better.
        """
        found = self.summaries(metric)
        if not found:
            names = sorted({summary.metric for summary in self.summaries()})
            hint = did_you_mean(metric, names) if names else "there are no experiments yet"
            raise ExperimentError(f"no experiment has a metric '{metric}'", hint)
        direction = direction or metric_direction(metric)
        if direction is None:
            raise ExperimentError(
                f"is a higher or a lower '{metric}' better?", "add --max or --min"
            )
        splits = sorted({summary.split for summary in found})
        split = split or preferred_split(splits)
        if split not in splits:
            raise ExperimentError(f"no '{metric}' on split '{split}'", did_you_mean(split, splits))
        by_file = {manifest["file"]: manifest for manifest in self.manifests}
        ranked = [(by_file[summary.file], summary) for summary in found if summary.split == split]

        def rank(entry: tuple[dict[str, Any], MetricSummary]) -> tuple[bool, float]:
            value = entry[1].best(direction)
            if value is None:
                return True, 0.0
            return entry[1].diverged, value if direction == "min" else -value

        return sorted(ranked, key=rank)


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
        database.execute("INSERT INTO files VALUES (?, ?, ?, NULL, ?)", (file, *stamp, reason))
        return
    entry = (file, *stamp, json.dumps(manifest))
    database.execute("INSERT INTO files VALUES (?, ?, ?, ?, NULL)", entry)
    summaries = _summarise(file, rows)
    database.executemany(f"INSERT INTO metrics VALUES ({', '.join('?' * 12)})", summaries)


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
        get_logger("experiments").warning(f"left out {path.name}: it is damaged ({error!r})")
        return {}


Rows = list[tuple[int, str, dict[str, float]]]  # step, split, metrics


def _read_live(path: Path) -> tuple[dict[str, Any] | None, Rows]:
    content = read_log(path)
    if not content.manifest and not content.rows and not content.damaged_lines:
        return None, []  # a name that was claimed a moment ago
    if "name" not in content.manifest:
        raise ValueError("its first record is damaged")
    return content.manifest, [(row["step"], row["split"], row["metrics"]) for row in content.rows]


def _read_parquet(path: Path) -> tuple[dict[str, Any], Rows]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
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
    columns = [table[name].to_pylist() for name in metrics]
    rows: Rows = []
    for index, (step, split) in enumerate(
        zip(table["step"].to_pylist(), table["split"].to_pylist(), strict=True)
    ):
        values = {name: column[index] for name, column in zip(metrics, columns, strict=True)}
        rows.append((step, split, {name: v for name, v in values.items() if v is not None}))
    return manifest, rows


def _summarise(file: str, rows: Rows) -> list[tuple[Any, ...]]:
    series: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for step, split, metrics in rows:
        for name, value in metrics.items():
            series.setdefault((split, name), []).append((step, value))
    summaries = []
    for (split, name), points in series.items():
        finite = [(value, step) for step, value in points if math.isfinite(value)]
        low, low_step = min(finite, default=(None, None))
        high, high_step = max(finite, key=lambda point: point[0], default=(None, None))
        first, (last_step, last) = points[0][1], points[-1]
        extremes = (low, high, low_step, high_step, last_step, len(points) - len(finite))
        summaries.append((file, split, name, len(points), first, last, *extremes))
    return summaries


def _is_log(manifest: dict[str, Any]) -> bool:
    return str(manifest["file"]).endswith(".jsonl")


def _live_status(name: str) -> str:
    # filelock takes 70 ms to import, so only where a run may be alive.
    from common.utils.experiment_storage.run import is_running

    return "running" if is_running(name) else "died"
