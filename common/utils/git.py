"""Run git independent of the user's configuration and without side effects."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

# Each of these changes what a command writes or applies. Hooks are for the user's own commands, and
# a file system monitor would outlive us.
_SETTINGS = (
    *("core.hooksPath=/dev/null", "core.fsmonitor=false", "core.quotePath=true"),
    *(
        "diff.suppressBlankEmpty=false",
        "diff.orderFile=/dev/null",
        "apply.ignoreWhitespace=no",
        "color.ui=false",
    ),
)
# Set by a hook that starts us; they would select another repository or output format.
_VARIABLES = (
    *("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR"),
    *("GIT_PREFIX", "GIT_EXTERNAL_DIFF", "GIT_DIFF_OPTS"),
)


def run_git(
    *arguments: str, cwd: Path, text: bytes | None = None, timeout_seconds: float | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run git in `cwd` with `text` as its input.

    Read-only commands take no lock, which a kill would leave in the user's repository.
    Raises FileNotFoundError without git, and subprocess.TimeoutExpired.
    """
    settings = [part for setting in _SETTINGS for part in ("-c", setting)]
    return subprocess.run(
        ["git", "--no-optional-locks", *settings, *arguments],
        cwd=cwd,
        env={key: value for key, value in os.environ.items() if key not in _VARIABLES},
        input=text,
        capture_output=True,
        timeout=timeout_seconds,
    )
