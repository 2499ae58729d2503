"""Check out an earlier commit in a temporary folder."""

from __future__ import annotations

import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import ExperimentError
from common.utils.git import run_git
from common.utils.paths import REPOSITORY_ROOT


@contextmanager
def worktree(commit: str, patch: str = "", *, keep: bool = False) -> Iterator[Path]:
    """Create a folder with the files of `commit` and the changes of `patch` (output of `git diff`).

    It is a `git worktree`: the checkout, its branch and its uncommitted changes are unaffected. It
    is removed at the end of the block, unless `keep`.
    Raises ExperimentError without git, for a missing commit, and a patch that does not apply.
    """
    _check_commit(commit)
    holder = Path(tempfile.mkdtemp(prefix="worktree-")).resolve()
    folder = holder / "repository"
    try:
        _git("worktree", "add", "--detach", "--quiet", str(folder), commit)
        try:
            if patch:
                # With --index, so that files that were new then are tracked.
                _git("apply", "--index", "--whitespace=nowarn", "-", cwd=folder, text=patch)
            yield folder
        finally:
            if not keep:
                with _uninterrupted():
                    _git("worktree", "remove", "--force", str(folder))
    finally:
        if not keep:
            shutil.rmtree(holder, ignore_errors=True)


def _check_commit(commit: str) -> None:
    try:
        _git("rev-parse", "--git-dir")
    except ExperimentError as error:
        raise ExperimentError(
            f"{REPOSITORY_ROOT} is not a git repository: {error.message}",
            "use a clone of the repository that the experiment was run in",
        ) from error
    try:
        _git("cat-file", "-e", f"{commit}^{{commit}}")
    except ExperimentError as error:
        raise ExperimentError(
            f"commit {commit} is not in {REPOSITORY_ROOT}",
            "fetch it (git fetch --all; in a shallow clone git fetch --unshallow), or work in the "
            "clone that the experiment was run in",
        ) from error


def _git(*arguments: str, cwd: Path | None = None, text: str | None = None) -> None:
    content = None if text is None else text.encode("utf-8", "surrogateescape")
    try:
        result = run_git(*arguments, cwd=cwd or REPOSITORY_ROOT, text=content)
    except FileNotFoundError as error:
        raise ExperimentError("git is not installed", "install git") from error
    if result.returncode != 0:
        reason = " ".join(result.stderr.decode(errors="replace").split())
        raise ExperimentError(f"git {arguments[0]} failed: {reason}")


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ignore a second Ctrl-C and SIGTERM in the block, also in git subprocesses."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
