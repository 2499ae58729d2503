"""An earlier state of a real repository, in a folder that is gone afterwards."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from apps.reproduction import worktree as module
from apps.reproduction.worktree import worktree
from common.errors import ExperimentError
from common.utils import manifest


def git(directory: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false"]
    command = ["git", *identity, *arguments]
    return subprocess.run(command, cwd=directory, capture_output=True, check=True).stdout.decode()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two commits; temporary files go beside it."""
    directory, temporary = tmp_path / "repository", tmp_path / "temporary"
    directory.mkdir()
    temporary.mkdir()
    git(directory, "init", "--quiet")
    for content in ("first\n", "second\n"):
        (directory / "a.txt").write_text(content)
        git(directory, "add", ".")
        git(directory, "commit", "--quiet", "-m", content)
    monkeypatch.setattr(module, "REPOSITORY_ROOT", directory)
    monkeypatch.setattr(manifest, "REPOSITORY_ROOT", directory)
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    return directory


def assert_nothing_left(repository: Path) -> None:
    assert list((repository.parent / "temporary").iterdir()) == []
    assert len(git(repository, "worktree", "list").splitlines()) == 1


def test_it_has_the_files_of_the_commit_and_the_checkout_stays_as_it_is(repository: Path) -> None:
    first = git(repository, "rev-parse", "HEAD~1").strip()
    (repository / "a.txt").write_text("uncommitted\n")
    before = git(repository, "status", "--porcelain", "--branch")
    with worktree(first) as folder:
        assert (folder / "a.txt").read_text() == "first\n"
        assert git(folder, "rev-parse", "HEAD").strip() == first
    assert git(repository, "status", "--porcelain", "--branch") == before
    assert (repository / "a.txt").read_text() == "uncommitted\n"
    assert_nothing_left(repository)


def test_the_recorded_changes_come_back_byte_for_byte(repository: Path) -> None:
    (repository / "a.txt").write_bytes(b"\xff trailing \t\n\n")
    (repository / "new.bin").write_bytes(bytes(range(256)))
    git(repository, "add", "new.bin")
    state = manifest.git_state()
    git(repository, "reset", "--hard", "--quiet")
    with worktree(state["git_commit"], state["git_diff"]) as folder:
        assert (folder / "a.txt").read_bytes() == b"\xff trailing \t\n\n"
        assert (folder / "new.bin").read_bytes() == bytes(range(256))
    assert_nothing_left(repository)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_it_is_removed_however_the_block_ends(repository: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), worktree("HEAD") as folder:
        (folder / "made.txt").write_text("while it ran")
        raise error
    assert_nothing_left(repository)


def test_a_second_ctrl_c_does_not_keep_it_from_being_removed(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git_command = module._git

    def interrupted(*arguments: str, **options: Any) -> None:
        if "remove" in arguments:
            os.kill(os.getpid(), signal.SIGINT)
        git_command(*arguments, **options)

    monkeypatch.setattr(module, "_git", interrupted)
    with worktree("HEAD"):
        pass
    assert_nothing_left(repository)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_it_is_kept_on_request(repository: Path) -> None:
    with worktree("HEAD", keep=True) as folder:
        pass
    assert (folder / "a.txt").exists()
    git(repository, "worktree", "remove", "--force", str(folder))


def test_the_hooks_of_the_user_do_not_run(repository: Path) -> None:
    hook = repository / ".git" / "hooks" / "post-checkout"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\ntouch hooked\n")
    hook.chmod(hook.stat().st_mode | stat.S_IXUSR)
    with worktree("HEAD") as folder:
        assert not (folder / "hooked").exists()


def test_a_commit_that_is_not_here_is_refused_with_what_to_do(repository: Path) -> None:
    with pytest.raises(ExperimentError, match="is not in") as error, worktree("0" * 40):
        pass
    assert "fetch" in error.value.hint
    assert_nothing_left(repository)


def test_a_patch_that_does_not_fit_is_refused(repository: Path) -> None:
    (repository / "a.txt").write_text("third\n")
    patch = manifest.git_state()["git_diff"]
    with pytest.raises(ExperimentError, match="git apply failed"), worktree("HEAD~1", patch):
        pass
    assert_nothing_left(repository)


def test_a_folder_without_git_is_refused(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REPOSITORY_ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(ExperimentError, match="not a git repository"), worktree("HEAD"):
        pass


def test_a_machine_without_git_is_told(
    repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ExperimentError, match="git is not installed"), worktree("HEAD"):
        pass
