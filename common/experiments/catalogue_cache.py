"""The SQLite cache behind the catalogue, kept in step with the store's files.

It can be deleted at any time: what has changed since is read again, and an unusable cache is rebuilt.
A reader that finds it behind the store works on a copy in memory; `refresh` writes the file.
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
    """In the store, or in the user's own cache where nothing can be written beside the store's files."""
    directory = get_experiments_dir()
    if os.access(directory, os.W_OK) or not directory.exists():
        return directory / _NAME
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    number = zlib.crc32(os.fsencode(directory))
    return (
        caches / "research-monorepo" / "catalogues" / f"{directory.parts[-3]}-{number:08x}.sqlite"
    )


def open_cache(*, refresh: bool, damaged: bool = False) -> sqlite3.Connection:
    """The catalogue's tables as the store is at this moment.

    Args:
        refresh: bring the file up to date, or make it again; where that is impossible, and without
            `refresh`, nothing is written: what the file lacks is read into memory.
        damaged: a query found that a page of the file is.
    """
    if not refresh:
        return _in_memory() if damaged else _read()
    if damaged:
        discard_cache()
    return _refresh()


def discard_cache() -> None:
    """Delete the cache file."""
    with suppress(OSError):  # what can only be read can still be read, only slower
        cache_path().unlink(missing_ok=True)


def is_busy(error: sqlite3.Error) -> bool:
    """Whether others hold the cache: it is sound, and deleting it would pull it from under them."""
    return getattr(error, "sqlite_errorcode", None) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _read() -> sqlite3.Connection:
    """The file where it is up to date, otherwise a copy in memory."""
    path = cache_path()
    try:
        database = _open(f"{path.absolute().as_uri()}?mode=ro")
        if _is_cut(database, path) or _version_of(database) != SCHEMA_VERSION:
            database.close()
            return _in_memory()
        return _copied(database) if _is_behind(database) else database
    except sqlite3.DatabaseError:  # there is none, it is damaged, or others write
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
        raise sqlite3.DatabaseError("SQLite would read zeros where the end is missing")
    try:
        _update(database)
    except sqlite3.OperationalError as error:
        if not is_busy(error):
            raise
        # Many others stand in line to write, so this one is brought up to date for us alone.
        return _copied(database)
    return database


def _in_memory() -> sqlite3.Connection:
    database = _open(":memory:")
    _update(database)
    return database


def _copied(database: sqlite3.Connection) -> sqlite3.Connection:
    """A copy of it in memory, brought up to date."""
    copy = _open(":memory:")
    database.backup(copy)
    database.close()
    _update(copy)
    return copy


def _is_cut(database: sqlite3.Connection, path: Path) -> bool:
    pages, size = (database.execute(f"PRAGMA page_{w}").fetchone()[0] for w in ("count", "size"))
    try:
        return bool(path.stat().st_size < pages * size)
    except FileNotFoundError:  # another process has just thrown it away
        return False


def _version_of(database: sqlite3.Connection) -> int:
    return int(database.execute("PRAGMA user_version").fetchone()[0])


def _open(path: str) -> sqlite3.Connection:
    database = sqlite3.connect(path, uri=True, timeout=_LONGEST_WAIT_SECONDS)
    database.create_function("status_now", 2, status_now)
    return database


def status_now(status: str, file: str) -> str:
    """`status` as it was logged, but `died` where it says running and no process holds the run."""
    path = get_experiments_dir() / file
    if status != "running" or is_running(path.stem):
        return status
    try:
        last = last_record(path)
    except FileNotFoundError:
        return "finished"  # since the log was read
    ended = last is not None and last["kind"] == "update" and last["manifest"].get("status")
    return str(ended or "died")  # a run says as the last thing how it ended


def _update(database: sqlite3.Connection) -> None:
    """Read the files that are new or changed, forget those that are gone."""
    if _version_of(database) != SCHEMA_VERSION:
        database.executescript(SCHEMA)
    if not _is_behind(database):
        return
    with database:
        # Whoever waits here finds that others have done the work meanwhile.
        database.execute("BEGIN IMMEDIATE")
        while True:
            try:
                return read_changes(database)
            except FileNotFoundError:
                pass  # a run was finished, packed or deleted in this moment: look again


def _is_behind(database: sqlite3.Connection) -> bool:
    known = known_files(database)
    while True:
        with suppress(FileNotFoundError):
            return known != scan_store()
