"""Errors that a user can act on: one line with the cause, one hint with the fix, exit code 2.

Raise the matching subclass with a message and a hint. Scripts wrap their main function in
`exit_on_error`, which prints `error [code]: message` and the hint instead of a traceback (set
RESEARCH_TRACEBACK=1 to see it).
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from common.terminal import printable

_ELSEWHERE = "set RESEARCH_ASSETS_DIR to a folder that you can write to"
_SYSTEM_HINTS = {
    errno.ENOSPC: "free some disk space, or set RESEARCH_ASSETS_DIR to another disk",
    errno.EDQUOT: "your quota is used up; set RESEARCH_ASSETS_DIR to another disk",
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR), _ELSEWHERE),
}


class ResearchError(Exception):
    """Base class of errors that the user caused or can fix."""

    code: ClassVar[str] = "error"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        """Message and hint, for Python callers; `exit_on_error` prints them on two lines."""
        return f"{self.message} (hint: {self.hint})" if self.hint else self.message


class UsageError(ResearchError):
    code = "usage"


class ConfigError(ResearchError):
    code = "config"


class DataError(ResearchError):
    code = "data"


class DownloadError(ResearchError):
    code = "download"


class ModelError(ResearchError):
    code = "model"


class TrainingError(ResearchError):
    code = "training"


class CheckpointError(ResearchError):
    code = "checkpoint"


class ExperimentError(ResearchError):
    code = "experiment"


class MissingPackageError(ResearchError):
    code = "package"


class Interrupted(KeyboardInterrupt):
    """Stopped by a signal after everything was saved; the message says how to continue."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


def did_you_mean(name: str, valid: list[str]) -> str:
    """A hint with the nearest valid name, or with all names if none is near."""
    from difflib import get_close_matches  # lazy, like traceback below

    lowered = {v.lower(): v for v in valid}
    near = get_close_matches(name.lower(), lowered, n=1, cutoff=0.6)
    return f"did you mean '{lowered[near[0]]}'?" if near else f"choose from: {', '.join(valid)}"


def _release(error: BaseException | None) -> None:
    """Release references of the failed frames: DuckDB complains about connections open at exit."""
    import traceback

    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Turn expected errors into one line on stderr and exit code 2; let bugs show their traceback.

    An OSError counts as expected: users can fix a full disk or a missing permission.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output has exited (`... | head`): exit silently, as other tools do.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except (ResearchError, OSError) as error:
        if os.environ.get("RESEARCH_TRACEBACK"):
            raise
        if isinstance(error, ResearchError):
            line, hint = f"error [{error.code}]: {error.message}", error.hint
        else:
            where = f"{error.filename}: " if error.filename else ""
            line = f"error [system]: {where}{error.strerror or error}"
            hint = _SYSTEM_HINTS.get(error.errno or 0, "")
        print(printable(f"{line}\n  hint: {hint}" if hint else line), file=sys.stderr)
        _release(error)
        sys.exit(2)
    except KeyboardInterrupt as interrupt:
        print(str(interrupt) or "interrupted", file=sys.stderr)
        sys.exit(interrupt.exit_code if isinstance(interrupt, Interrupted) else 130)
