"""The files of the store: their names, which ones count, and locks of runs.

`<name>.jsonl` is the log of a live run, `<name>.parquet` a finished experiment, and `packs/` has
the old ones of a large store.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import ExperimentError
from common.utils.file_locks import file_lock, is_locked
from common.utils.manifest import unique_name
from common.utils.paths import get_experiments_dir
from common.utils.plain import is_text

if TYPE_CHECKING:
    from filelock import FileLock

Stamp = tuple[int, int]  # (size, mtime_ns)
RUNS_ENDING = ".runs.csv"  # of the table of runs beside an exported CSV
# Other logs; names of runs start with a letter or a digit.
ANNOTATIONS = "_annotations.jsonl"
CHECKSUMS = "_checksums.jsonl"
REMOTE = "_remote.jsonl"
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"


def log_path(name: str) -> Path:
    """The log of a live run."""
    return get_experiments_dir() / f"{name}.jsonl"


def parquet_path(name: str) -> Path:
    """The file of a finished experiment."""
    return get_experiments_dir() / f"{name}.parquet"


def packs_dir() -> Path:
    """The folder of packs."""
    return get_experiments_dir() / "packs"


def is_pack(file: str) -> bool:
    """Whether `file`, relative to the store, is a pack."""
    return file.startswith("packs/")


def free_parquet_path(name: str, identifier: str) -> Path:
    """Path for the experiment `identifier`: `<name>.parquet`, or `<name>@<id>.parquet` if that is
    taken. Never replaces a file."""
    path, stem = parquet_path(name), unique_name(name, identifier)
    while path.exists():
        path, stem = parquet_path(stem), f"{stem}+"
    return path


def is_name(name: str) -> bool:
    """Whether `name` is a valid experiment name."""
    return re.fullmatch(_NAME, name) is not None


def check_name(name: str) -> None:
    """Raise ExperimentError if `name` is not a valid experiment name."""
    if not is_name(name):
        raise ExperimentError(
            f"{name!r} is not a valid experiment name",
            "use letters, digits, '.', '_' and '-' (at most 128), a letter or digit first",
        )


# Locks --------------------------------------------------------------------------------------------


def lock_path(name: str) -> Path:
    """The file that a live run locks."""
    return get_experiments_dir() / f".{name}.lock"


def lock_of(name: str) -> FileLock:
    """The lock held by a live run. The system releases it when the process ends."""
    return file_lock(lock_path(name))


def is_running(name: str) -> bool:
    """Whether a live process holds the run; does not modify the store."""
    return is_locked(lock_path(name))


def packs_lock() -> FileLock:
    """Lock held while packing, unpacking or deleting finished experiments."""
    packs_dir().mkdir(parents=True, exist_ok=True)
    return file_lock(packs_dir() / ".lock")


# Which files count ---------------------------------------------------------------------------------


def scan_store() -> dict[str, Stamp]:
    """{file: (size, mtime_ns)} of the packs, logs, Parquet files and annotations of the store."""
    directory = get_experiments_dir()
    while True:
        packs = _list(packs_dir(), ".parquet")
        # Logs first: a run that finishes in between appears as its log, its file, or both.
        logs = _list(directory, ".jsonl")
        loose = _list(directory, ".parquet")
        if packs == _list(packs_dir(), ".parquet"):  # otherwise something may have moved in between
            break
    logs = [file for file in logs if file not in (CHECKSUMS, REMOTE)]
    files = [*(f"packs/{pack}" for pack in packs), *loose, *logs]
    return {file: _stamp(f"{directory}/{file}") for file in files}


def _stamp(path: str) -> Stamp:
    try:
        status = os.stat(path)  # noqa: PTH116 (three times as fast)
    except OSError:
        status = os.lstat(path)  # a dangling link: reading it reports the error
    return status.st_size, status.st_mtime_ns


def _list(directory: Path, ending: str) -> list[str]:
    try:
        files = os.listdir(directory)  # noqa: PTH208 (names are enough)
    except FileNotFoundError:
        return []
    found = [file for file in files if file.endswith(ending) and file[0] != "."]
    # Skip names with undecodable bytes, which SQLite cannot store.
    return sorted(file for file in found if file.isascii() or is_text(file))
