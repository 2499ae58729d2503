"""The SQLite cache behind the catalogue, kept in step with the store's files.

It can be deleted at any time: every file whose size or time has changed is read again (of a log,
what was appended), and an unusable cache is rebuilt. Broken files are kept with their error, so
that they are named and all others stay readable.
"""

from __future__ import annotations

import json
import os
import sqlite3
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from common.utils.experiment_storage.annotations import annotations_path, read_annotations
from common.utils.experiment_storage.locks import is_running
from common.utils.experiment_storage.log import LogContent, last_record
from common.utils.experiment_storage.metrics import (
    MetricSummary,
    preferred_split,
    summarise_rows,
)
from common.utils.experiment_storage.scan import Stamp, scan_store
from common.utils.experiment_storage.store import log_path
from common.utils.manifest import check_manifest, clean_facts
from common.utils.paths import get_experiments_dir

_NAME = ".catalogue.sqlite"
_LONGEST_WAIT_SECONDS = 2.0
_SCHEMA_VERSION = 6
_SCHEMA = f"""
DROP TABLE IF EXISTS files;
DROP TABLE IF EXISTS experiments;
DROP TABLE IF EXISTS manifests;
DROP TABLE IF EXISTS changes;
DROP TABLE IF EXISTS texts;
DROP TABLE IF EXISTS metrics;
CREATE TABLE files (file TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER, error TEXT,
    replaces TEXT, head BLOB, consumed INTEGER, hides_nan INTEGER);
CREATE TABLE experiments (name TEXT PRIMARY KEY, file TEXT, status TEXT, project TEXT, started TEXT,
    started_us INTEGER, since_us INTEGER, duration REAL, parameters INTEGER, step INTEGER, best_loss REAL, tags TEXT,
    note TEXT, archived INTEGER, config_hash TEXT);
CREATE TABLE manifests (name TEXT PRIMARY KEY, manifest TEXT);
CREATE TABLE changes (number INTEGER);
INSERT INTO changes VALUES (0);
CREATE TABLE texts (key TEXT PRIMARY KEY, text TEXT);
CREATE INDEX live_experiments ON experiments (name) WHERE status = 'running';
CREATE INDEX experiments_of_file ON experiments (file);
CREATE INDEX archived_experiments ON experiments (name) WHERE archived;
CREATE TABLE metrics (name TEXT, split TEXT, metric TEXT, num_values INTEGER, first REAL, last REAL,
    minimum REAL, maximum REAL, minimum_step INTEGER, maximum_step INTEGER, last_step INTEGER,
    non_finite INTEGER, PRIMARY KEY (metric, split, name)) WITHOUT ROWID;
CREATE INDEX metrics_of_experiment ON metrics (name);
PRAGMA user_version = {_SCHEMA_VERSION};
"""


def cache_path() -> Path:
    """In the store, or in the user's own cache where nothing can be written beside the store's files."""
    directory = get_experiments_dir()
    if os.access(directory, os.W_OK) or not directory.exists():
        return directory / _NAME
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    number = zlib.crc32(os.fsencode(directory))
    return (
        caches / "research-monorepo" / "catalogues" / f"{directory.parts[-3]}-{number:08x}.sqlite"
    )


def open_cache() -> sqlite3.Connection:
    """The cache, brought up to date; made again when it is damaged, in memory when it can be written
    nowhere."""
    path = cache_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return _connect(str(path))
    except sqlite3.DatabaseError as error:
        if is_busy(error):
            return _connect(":memory:")
        discard_cache()
    except OSError:
        if path.parent == get_experiments_dir():
            raise
    try:
        return _connect(str(path))
    except sqlite3.DatabaseError:
        return _connect(":memory:")


def discard_cache() -> None:
    with suppress(OSError):  # what can only be read can still be read, only slower
        cache_path().unlink(missing_ok=True)


def is_busy(error: sqlite3.Error) -> bool:
    """Whether others hold the cache: it is sound, and deleting it would pull it from under them."""
    return getattr(error, "sqlite_errorcode", None) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _connect(path: str) -> sqlite3.Connection:
    database = _open(path)
    if path != ":memory:" and _is_cut(database, Path(path)):
        raise sqlite3.DatabaseError("SQLite would read zeros where the end is missing")
    if database.execute("PRAGMA user_version").fetchone()[0] != _SCHEMA_VERSION:
        database.executescript(_SCHEMA)
    try:
        update_cache(database)
    except sqlite3.OperationalError as error:
        if not is_busy(error):
            raise
        # Many others stand in line to write, so this one is brought up to date for us alone.
        shared, database = database, _open(":memory:")
        shared.backup(database)
        shared.close()
        update_cache(database)
    return database


def _is_cut(database: sqlite3.Connection, path: Path) -> bool:
    pages, size = (database.execute(f"PRAGMA page_{w}").fetchone()[0] for w in ("count", "size"))
    try:
        return bool(path.stat().st_size < pages * size)
    except FileNotFoundError:  # another process has just thrown it away
        return False


def _open(path: str) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=_LONGEST_WAIT_SECONDS)
    database.create_function("status_now", 2, status_now)
    return database


def status_now(status: str, name: str) -> str:
    """`status` as it was logged, but `died` where it says running and no process holds the run."""
    if status != "running" or is_running(name):
        return status
    try:
        last = last_record(log_path(name))
    except FileNotFoundError:
        return "finished"  # since the log was read
    ended = last is not None and last["kind"] == "update" and last["manifest"].get("status")
    return str(ended or "died")  # a run says as the last thing how it ended


def update_cache(database: sqlite3.Connection) -> None:
    """Read the files that are new or changed, forget those that are gone."""
    if not _is_behind(database):
        return
    with database:
        # Whoever waits here finds that others have done the work meanwhile.
        database.execute("BEGIN IMMEDIATE")
        while True:
            try:
                return _read_changes(database)
            except FileNotFoundError:
                pass  # a run was finished, packed or deleted in this moment: look again


def _is_behind(database: sqlite3.Connection) -> bool:
    known = _known(database)
    while True:
        with suppress(FileNotFoundError):
            return known != scan_store()


def _known(database: sqlite3.Connection) -> dict[str, Stamp]:
    rows = database.execute("SELECT file, size, mtime_ns FROM files")
    return {file: (size, mtime_ns) for file, size, mtime_ns in rows}


def _read_changes(database: sqlite3.Connection) -> None:
    known, present = _known(database), scan_store()
    changed = {file: stamp for file, stamp in present.items() if known.get(file) != stamp}
    gone = known.keys() - present.keys()
    if changed or gone:
        database.execute("UPDATE changes SET number = number + 1")
        database.execute("DELETE FROM texts")
    for file in gone:
        _forget(database, file)
    # Packs first, the newest before those that it takes the place of.
    for file in sorted(filter(_is_pack, changed), reverse=True):
        _read_file(database, file, changed[file])
    if any(map(_is_pack, (*changed, *gone))):  # what they held may stand in other files now
        changed = present
    for file in changed:
        if not _is_pack(file) and not _is_annotations(file):
            _read_file(database, file, changed[file], known.get(file))
    if changed:
        error = _annotate(database)
        for file in filter(_is_annotations, changed):
            _remember(database, file, changed[file], error)


def _is_pack(file: str) -> bool:
    return file.startswith("packs/")


def _is_annotations(file: str) -> bool:
    return file == annotations_path().name


def _forget(database: sqlite3.Connection, file: str) -> None:
    database.execute("DELETE FROM files WHERE file = ?", (file,))
    for table in ("metrics", "manifests"):
        names = "SELECT name FROM experiments WHERE file = ?"
        database.execute(f"DELETE FROM {table} WHERE name IN ({names})", (file,))
    database.execute("DELETE FROM experiments WHERE file = ?", (file,))


def _remember(
    database: sqlite3.Connection,
    file: str,
    stamp: Stamp,
    error: str | None = None,
    replaces: list[str] | None = None,
    head: bytes | None = None,
    consumed: int | None = None,
    hides_nan: bool = False,
) -> None:
    row = (file, *stamp, error, json.dumps(replaces or []), head, consumed, hides_nan)
    database.execute(f"INSERT OR REPLACE INTO files VALUES ({', '.join('?' * 8)})", row)


def _read_file(
    database: sqlite3.Connection, file: str, stamp: Stamp, before: Stamp | None = None
) -> None:
    """Enter what `file` holds; `before` is its stamp when it was last read."""
    path = get_experiments_dir() / file
    try:
        if _is_pack(file):
            return _read_pack(database, file, stamp)
        if _owner(database, path.stem) not in (None, file):
            return  # a crash has left it behind when it moved into a pack
        if file.endswith(".parquet"):
            if before == stamp and _owner(database, path.stem) == file:
                return
            return _read_parquet(database, file, stamp)
        _read_live(database, file, stamp)
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, FileNotFoundError) and not path.is_symlink():
            raise  # it was there a moment ago
        _forget(database, file)
        _remember(database, file, stamp, str(error).splitlines()[0])


def _owner(database: sqlite3.Connection, name: str) -> str | None:
    """The file that the experiment `name` stands in."""
    row = database.execute("SELECT file FROM experiments WHERE name = ?", (name,)).fetchone()
    return None if row is None else str(row[0])


def _read_pack(database: sqlite3.Connection, file: str, stamp: Stamp) -> None:
    from common.utils.experiment_storage.packs import read_pack, replaced_packs
    from common.utils.experiment_storage.parquet import has_metric_statistics, summarise_table

    path = get_experiments_dir() / file
    for (replaces,) in database.execute("SELECT replaces FROM files").fetchall():
        if path.name in json.loads(replaces):
            return _remember(database, file, stamp)  # a crash has left it behind
    replaces = replaced_packs(path)
    for replaced in replaces:
        _forget(database, f"packs/{replaced}")
    _forget(database, file)
    diverged = False
    for manifest, table in read_pack(path):
        name = str(check_manifest(manifest)["name"])
        if _is_pack(other := _owner(database, name) or ""):
            raise ValueError(f"it holds '{name}', as {other} does")
        summaries = summarise_table(name, table)
        diverged |= any(summary.non_finite for summary in summaries)
        _enter(database, file, manifest, summaries)
    hides_nan = diverged and has_metric_statistics(path)
    _remember(database, file, stamp, replaces=replaces, hides_nan=hides_nan)


def _read_parquet(database: sqlite3.Connection, file: str, stamp: Stamp) -> None:
    from common.utils.experiment_storage.parquet import (
        has_metric_statistics,
        read_parquet,
        summarise_table,
    )

    path = get_experiments_dir() / file
    manifest, table = read_parquet(path)
    _check_name(manifest, path)
    _forget(database, file)
    summaries = summarise_table(path.stem, table)
    _enter(database, file, manifest, summaries)
    # The footer once more, for the few runs that diverged.
    hides_nan = any(s.non_finite for s in summaries) and has_metric_statistics(path)
    _remember(database, file, stamp, hides_nan=hides_nan)


def _check_name(manifest: dict[str, Any], path: Path) -> None:
    if check_manifest(manifest)["name"] != path.stem:
        raise ValueError(f"it is a copy of '{manifest['name']}' under another name")


def _read_live(database: sqlite3.Connection, file: str, stamp: Stamp) -> None:
    """Read a log: from where the last read ended, where that is enough."""
    path = get_experiments_dir() / file
    with path.open("rb") as log:
        head = log.read(8)  # the checksum of the first record tells one log from another
    manifest, known, consumed = _read_before(database, file, head)
    content = LogContent(path, consumed)
    if consumed and (content.resumes or content.damaged_lines):  # rows that were read may not count
        manifest, known = {}, []
        content = LogContent(path)
    manifest |= content.manifest
    if not manifest and not content.num_rows and not content.damaged_lines:
        return _forget(database, file)  # a name that was claimed a moment ago
    if "name" not in manifest:
        raise ValueError("its first record is damaged")
    _check_name(manifest, path)
    _forget(database, file)
    _enter(database, file, manifest, summarise_rows(path.stem, content.iter_rows(), known))
    _remember(database, file, stamp, head=head, consumed=content.end)


def _read_before(
    database: sqlite3.Connection, file: str, head: bytes
) -> tuple[dict[str, Any], list[MetricSummary], int]:
    row = database.execute(
        """SELECT manifest, consumed, name, size
        FROM files JOIN experiments USING (file) JOIN manifests USING (name) WHERE file = ? AND head = ?""",
        (file, head),
    ).fetchone()
    if row is None or row[3] > (get_experiments_dir() / file).stat().st_size:
        return {}, [], 0
    return json.loads(row[0]), list(_summaries(database, row[2])), int(row[1])


def _summaries(database: sqlite3.Connection, name: str) -> Iterator[MetricSummary]:
    for row in database.execute("SELECT * FROM metrics WHERE name = ?", (name,)):
        summary = MetricSummary(*row)
        nan = float("nan")  # SQLite holds it as NULL; the first and the last are never missing
        first, last = (nan if v is None else v for v in (summary.first, summary.last))
        yield summary._replace(first=first, last=last)


def _enter(
    database: sqlite3.Connection,
    file: str,
    manifest: dict[str, Any],
    summaries: list[MetricSummary],
) -> None:
    manifest = clean_facts(manifest)
    database.execute("DELETE FROM metrics WHERE name = ?", (manifest["name"],))
    database.executemany(f"INSERT INTO metrics VALUES ({', '.join('?' * 12)})", summaries)
    kept = {key: value for key, value in manifest.items() if key != "git_diff"}
    manifest_row = (manifest["name"], json.dumps(kept))
    database.execute("INSERT OR REPLACE INTO manifests VALUES (?, ?)", manifest_row)
    facts = _facts(file, manifest, summaries)
    marks = ", ".join("?" * len(facts))
    database.execute(f"INSERT OR REPLACE INTO experiments VALUES ({marks})", facts)


def _facts(
    file: str, manifest: dict[str, Any], summaries: Iterable[MetricSummary]
) -> tuple[object, ...]:
    """A row of `experiments`."""
    from common.utils.experiment_storage.comparison import config_hash

    losses = {s.split: s.minimum for s in summaries if s.metric == "loss"}
    return (
        manifest["name"],
        file,
        *(manifest[key] for key in ("status", "project", "started")),
        _microseconds(manifest["started"]),
        _microseconds(manifest.get("resumed") or manifest["started"]),
        manifest["duration"],
        manifest["parameters"],
        max((summary.last_step for summary in summaries), default=None),
        losses[preferred_split(losses)] if losses else None,
        json.dumps(manifest["tags"]),
        _note(manifest.get("note")),
        False,
        config_hash(manifest),
    )


def _microseconds(moment: str) -> int:
    return int(datetime.fromisoformat(moment).timestamp() * 1e6)


def _note(note: object) -> str:
    """`note` as text: the metadata of save_experiment may hold anything."""
    return note if isinstance(note, str) else "" if note is None else json.dumps(note)


def _annotate(database: sqlite3.Connection) -> str | None:
    """Let tags and notes that were changed later take the place of those in the files.

    Returns what is wrong with them."""
    annotations, problems = read_annotations()
    for name, said in annotations.items():
        database.execute(
            "UPDATE experiments SET tags = ?, note = ?, archived = ? WHERE name = ?",
            (json.dumps(said.tags), said.note, said.archived, name),
        )
    return "; ".join(problems) or None
