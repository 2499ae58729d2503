"""The lock that a live run holds. The system releases it however the process ends."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from common.utils.file_locks import file_lock, is_locked
from common.utils.paths import get_experiments_dir

if TYPE_CHECKING:
    from filelock import FileLock


def lock_path(name: str) -> Path:
    return get_experiments_dir() / f".{name}.lock"


def lock_of(name: str) -> FileLock:
    return file_lock(lock_path(name))


def is_running(name: str) -> bool:
    """Whether a process that still exists holds the run; asking changes nothing in the store."""
    return is_locked(lock_path(name))
