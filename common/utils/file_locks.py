"""File locks, with a fallback for file systems without them.

The system releases a lock when its process ends. Some network file systems refuse locks (ENOLCK,
ENOSYS): a local file is locked instead, which is visible to processes of the same machine only.
"""

from __future__ import annotations

import errno
import hashlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filelock import FileLock

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}
_has_locks: dict[Path, bool] = {}  # by folder


def file_lock(path: Path) -> FileLock:
    """Create a lock on `path`; `with` waits for it."""
    from filelock import FileLock  # lazy: 70 ms

    return FileLock(lockable(path))


def lockable(path: Path) -> Path:
    """`path`, or the local file that replaces it; determined once per folder."""
    if sys.platform == "win32":
        return path
    if path.parent not in _has_locks:
        try:
            _has_locks[path.parent] = _try(path)
        except OSError:
            return path  # locking it reports the error
    if _has_locks[path.parent]:
        return path
    here = _here(path)
    here.parent.mkdir(mode=0o700, exist_ok=True)
    return here


def is_locked(path: Path) -> bool:
    """Whether a live process holds the lock; creates no file."""
    if sys.platform == "win32":
        from filelock import Timeout

        try:
            with file_lock(path).acquire(blocking=False):
                return False
        except Timeout:
            return True
    return _is_held(path) or _is_held(_here(path))


if sys.platform != "win32":
    import fcntl

    def _is_held(path: Path) -> bool:
        try:
            with path.open("rb") as file:
                # Shared, so that concurrent checks are not mistaken for the holder.
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        return False

    def _try(path: Path) -> bool:
        is_new = not path.exists()
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            if is_new:
                path.unlink(missing_ok=True)
            _warn(path, error)
            return False
        finally:
            os.close(descriptor)
        return True

    def _here(path: Path) -> Path:
        # Not $TMPDIR, which clusters set per job.
        folder = Path("/tmp") / f"research-locks-{os.getuid()}"
        return folder / hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:32]


def _warn(path: Path, error: OSError) -> None:
    from common.utils.logging import get_logger

    get_logger("locks").warning(
        f"{path.parent} has no file locks ({error.strerror}): live runs of other machines that share "
        "it appear to have died, and must not be resumed here"
    )
