"""What a manifest records is enough to get the code back."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from common.utils import manifest, start_experiment


def git(directory: Path, *arguments: str, text: str | None = None) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false"]
    command = ["git", *identity, *arguments]
    result = subprocess.run(
        command,
        cwd=directory,
        input=None if text is None else text.encode("utf-8", "surrogateescape"),
        capture_output=True,
        check=True,
    )
    return result.stdout.decode()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "repository"
    directory.mkdir()
    git(directory, "init", "--quiet")
    (directory / "model.py").write_bytes(b"a = 1\n\xff\n \n")
    (directory / "weights.bin").write_bytes(bytes(range(256)))
    git(directory, "add", ".")
    git(directory, "commit", "--quiet", "-m", "first")
    monkeypatch.setattr(manifest, "REPOSITORY_ROOT", directory)
    return directory


def test_a_change_that_is_not_utf8_keeps_no_run_from_starting(repository: Path) -> None:
    (repository / "model.py").write_bytes(b"a = 2\n\xfe\n")
    run = start_experiment("exp")
    written = json.loads((run.directory / "manifest.json").read_text())
    assert b"+\xfe" in written["git_diff"].encode(errors="surrogateescape")
    run.finish()


def test_a_clean_repository_has_a_commit_and_an_empty_diff(repository: Path) -> None:
    commit = git(repository, "rev-parse", "HEAD").strip()
    expected = {"git_commit": commit, "git_dirty": False, "git_diff": "", "git_secrets": 0}
    assert manifest.git_state() == expected


def test_the_diff_brings_uncommitted_changes_back_byte_for_byte(repository: Path) -> None:
    changed = {"model.py": b"a = 2\n\xfe\n \n\t\n\n", "weights.bin": bytes(range(255, -1, -1))}
    for name, content in changed.items():
        (repository / name).write_bytes(content)
    state = json.loads(json.dumps(manifest.git_state()))
    assert state["git_dirty"] is True
    git(repository, "checkout", "--quiet", ".")
    git(repository, "apply", "-", text=state["git_diff"])
    assert {name: (repository / name).read_bytes() for name in changed} == changed


SETTINGS = """
[diff]
    noprefix = true
    mnemonicPrefix = true
    renames = copies
    external = false
    context = 0
    orderFile = /nowhere
    suppressBlankEmpty = true
[color]
    ui = always
[core]
    quotePath = false
[status]
    showUntrackedFiles = no
[apply]
    ignoreWhitespace = change
"""


def test_the_diff_is_the_same_whatever_the_user_has_set(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / "model.py").write_bytes(b"a = 2\n\n\xff\n \n")
    (repository / "w\u00e9ights.bin").write_bytes(b"new")
    git(repository, "add", ".")
    expected = manifest.git_state()
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ".gitconfig").write_text(SETTINGS)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GIT_EXTERNAL_DIFF", "/bin/true")
    monkeypatch.setenv("GIT_DIFF_OPTS", "-u0")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    assert manifest.git_state() == expected and expected["git_diff"]
    monkeypatch.undo()
    git(repository, "reset", "--quiet", "--hard")
    git(repository, "apply", "--index", "-", text=expected["git_diff"])
    assert (repository / "w\u00e9ights.bin").read_bytes() == b"new"


def test_the_index_of_the_user_is_neither_locked_nor_written(repository: Path) -> None:
    os.utime(repository / "model.py", ns=(0, 0))  # a plain `git status` would write the index now
    before = (repository / ".git" / "index").read_bytes()
    (repository / ".git" / "index.lock").touch()  # held by another git
    assert manifest.git_state()["git_dirty"] is False
    assert (repository / ".git" / "index").read_bytes() == before


def test_a_secret_in_an_uncommitted_line_is_not_recorded(repository: Path) -> None:
    secret = "hf_" + "aBcD1234" * 5
    (repository / "model.py").write_text(f"a = 1\ntoken = '{secret}'\nb = 2\n")
    state = manifest.git_state()
    assert secret not in state["git_diff"] and "+b = 2" in state["git_diff"]
    assert state["git_secrets"] == 1


def test_a_huge_diff_is_left_out_and_the_repository_called_dirty(repository: Path) -> None:
    (repository / "model.py").write_text("x = 1\n" * 200_000)
    state = manifest.git_state()
    assert state["git_diff"] is None and state["git_dirty"] is True


def test_outside_of_git_nothing_is_claimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "REPOSITORY_ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert set(manifest.git_state().values()) == {None}


def test_the_environment_has_one_fingerprint() -> None:
    first = manifest.environment_fingerprint()
    manifest.environment_fingerprint.cache_clear()
    assert manifest.environment_fingerprint() == first and len(first) == 16
