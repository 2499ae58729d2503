"""The lock that a live run holds. The system releases it however the process ends."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from common.utils.paths import get_experiments_dir

if TYPE_CHECKING:
    from filelock import FileLock


def lock_path(name: str) -> Path:
    return get_experiments_dir() / f".{name}.lock"


def lock_of(name: str) -> FileLock:
    from filelock import FileLock  # 70 ms that a list can do without

    return FileLock(lock_path(name))


def is_running(name: str) -> bool:
    """Whether a process that still exists holds the run; asking changes nothing in the store."""
    if sys.platform == "win32":
        from filelock import Timeout

        try:
            with lock_of(name).acquire(blocking=False):
                return False
        except Timeout:
            return True
    import fcntl

    try:
        with lock_path(name).open("rb") as file:
            # Shared, so that those who ask do not take one another for the run itself.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
