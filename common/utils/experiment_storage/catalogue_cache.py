"""The SQLite cache behind the catalogue: tables `files` and `metrics`, kept in step with the store's files.

It can be deleted at any time: every file whose size or time has changed is read again, and an
unusable cache is rebuilt. Broken files are kept with their error, so that they are named and all
others stay readable.
"""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from common.utils.experiment_storage.log import read_log
from common.utils.experiment_storage.metrics import (
    MetricSummary,
    Rows,
    preferred_split,
    summarise,
)
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


def cache_path() -> Path:
    return get_experiments_dir() / ".catalogue.sqlite"


def open_cache() -> sqlite3.Connection:
    """The cache, brought up to date; made again when it is damaged, in memory when it cannot be written."""
    path = cache_path()
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
    update_cache(database)
    return database


def update_cache(database: sqlite3.Connection) -> None:
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
    summaries = summarise(file, rows)
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


def _read_live(path: Path) -> tuple[dict[str, Any] | None, Rows]:
    content = read_log(path)
    rows = content.rows
    names = dict.fromkeys(name for row in rows for name in row["metrics"])
    columns = {name: [row["metrics"].get(name) for row in rows] for name in names}
    by_column = Rows([row["step"] for row in rows], [row["split"] for row in rows], columns)
    if not content.manifest and not rows and not content.damaged_lines:
        return None, by_column  # a name that was claimed a moment ago
    if "name" not in content.manifest:
        raise ValueError("its first record is damaged")
    return content.manifest, by_column


def _read_parquet(path: Path) -> tuple[dict[str, Any], Rows]:
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
    return manifest, Rows(table["step"].to_pylist(), table["split"].to_pylist(), columns)
