"""The SQLite cache of the catalogue, synchronised with the store's files.

It can be deleted at any time: changes are read again, and an unusable cache is rebuilt. A reader
that finds it outdated works on a copy in memory; `refresh` writes the file.
"""

from __future__ import annotations

import os
import sqlite3
import zlib
from contextlib import suppress
from pathlib import Path

from common.experiments.catalogue_entries import (
    SCHEMA,
    SCHEMA_VERSION,
    known_files,
    read_changes,
)
from common.experiments.log import last_record
from common.experiments.store import is_running, scan_store
from common.utils.paths import get_experiments_dir

_NAME = ".catalogue.sqlite"
_LONGEST_WAIT_SECONDS = 2.0


def cache_path() -> Path:
    """Path of the cache: in the store, or in the user's cache for a read-only store."""
    directory = get_experiments_dir()
    if os.access(directory, os.W_OK) or not directory.exists():
        return directory / _NAME
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    number = zlib.crc32(os.fsencode(directory))
    return (
        caches / "research-monorepo" / "catalogues" / f"{directory.parts[-3]}-{number:08x}.sqlite"
    )


def open_cache(*, refresh: bool, damaged: bool = False) -> sqlite3.Connection:
    """Open the catalogue's tables for the current state of the store.

    Args:
        refresh: update or rebuild the file; if that is impossible, and without `refresh`, changes
            are read into memory only.
        damaged: a query found a damaged page in the file.
    """
    if not refresh:
        return _in_memory() if damaged else _read()
    if damaged:
        discard_cache()
    return _refresh()


def discard_cache() -> None:
    """Delete the cache file."""
    with suppress(OSError):  # a read-only cache still works, only slower
        cache_path().unlink(missing_ok=True)


def is_busy(error: sqlite3.Error) -> bool:
    """Whether other processes use the cache: it is intact, and must not be deleted."""
    return getattr(error, "sqlite_errorcode", None) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _read() -> sqlite3.Connection:
    """The file if it is up to date, else a copy in memory."""
    path = cache_path()
    try:
        database = _open(f"{path.absolute().as_uri()}?mode=ro")
        if _is_cut(database, path) or _version_of(database) != SCHEMA_VERSION:
            database.close()
            return _in_memory()
        return _copied(database) if _is_behind(database) else database
    except sqlite3.DatabaseError:  # missing, damaged, or being written
        return _in_memory()


def _refresh() -> sqlite3.Connection:
    path = cache_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return _connect(path)
    except sqlite3.DatabaseError as error:
        if is_busy(error):
            return _in_memory()
        discard_cache()
    except OSError:
        if path.parent == get_experiments_dir():
            raise
    try:
        return _connect(path)
    except sqlite3.DatabaseError:
        return _in_memory()


def _connect(path: Path) -> sqlite3.Connection:
    database = _open(str(path))
    if _is_cut(database, path):
        raise sqlite3.DatabaseError("truncated: SQLite would read zeros")
    try:
        _update(database)
    except sqlite3.OperationalError as error:
        if not is_busy(error):
            raise
        # Many others wait to write: update a private copy.
        return _copied(database)
    return database


def _in_memory() -> sqlite3.Connection:
    database = _open(":memory:")
    _update(database)
    return database


def _copied(database: sqlite3.Connection) -> sqlite3.Connection:
    """An updated copy in memory."""
    copy = _open(":memory:")
    database.backup(copy)
    database.close()
    _update(copy)
    return copy


def _is_cut(database: sqlite3.Connection, path: Path) -> bool:
    pages, size = (database.execute(f"PRAGMA page_{w}").fetchone()[0] for w in ("count", "size"))
    try:
        return bool(path.stat().st_size < pages * size)
    except FileNotFoundError:  # another process has just deleted it
        return False


def _version_of(database: sqlite3.Connection) -> int:
    return int(database.execute("PRAGMA user_version").fetchone()[0])


def _open(path: str) -> sqlite3.Connection:
    database = sqlite3.connect(path, uri=True, timeout=_LONGEST_WAIT_SECONDS)
    database.create_function("status_now", 2, status_now)
    return database


def status_now(status: str, file: str) -> str:
    """The logged `status`, or `died` if it is running and no process holds the run."""
    path = get_experiments_dir() / file
    if status != "running" or is_running(path.stem):
        return status
    try:
        last = last_record(path)
    except FileNotFoundError:
        return "finished"  # after the log was read
    ended = last is not None and last["kind"] == "update" and last["manifest"].get("status")
    return str(ended or "died")  # the last record of a run has its status


def _update(database: sqlite3.Connection) -> None:
    """Read new and changed files, remove deleted ones."""
    if _version_of(database) != SCHEMA_VERSION:
        database.executescript(SCHEMA)
    if not _is_behind(database):
        return
    with database:
        # After waiting here, others may have done the work.
        database.execute("BEGIN IMMEDIATE")
        while True:
            try:
                return read_changes(database)
            except FileNotFoundError:
                pass  # a run was finished, packed or deleted meanwhile: retry


def _is_behind(database: sqlite3.Connection) -> bool:
    known = known_files(database)
    while True:
        with suppress(FileNotFoundError):
            return known != scan_store()
