"""git as this project runs it: the same output whatever the user has configured, and nothing left behind."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

# Each of these changes what a command writes or applies. Hooks are meant for the folder that the user
# works in, and a file system monitor would be started by us and stay.
_SETTINGS = (
    *("core.hooksPath=/dev/null", "core.fsmonitor=false", "core.quotePath=true"),
    *(
        "diff.suppressBlankEmpty=false",
        "diff.orderFile=/dev/null",
        "apply.ignoreWhitespace=no",
        "color.ui=false",
    ),
)
# A hook that starts us sets them, and would point git at another repository or another form of output.
_VARIABLES = (
    *("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR"),
    *("GIT_PREFIX", "GIT_EXTERNAL_DIFF", "GIT_DIFF_OPTS"),
)


def run_git(
    *arguments: str, cwd: Path, text: bytes | None = None, timeout_seconds: float | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run git in `cwd` with `text` as its input.

    Commands that only read take no lock: a kill would leave it in the user's repository.
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
