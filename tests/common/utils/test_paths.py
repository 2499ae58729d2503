"""RESEARCH_ASSETS_DIR as users mistype it: one line, exit code 2, from every command."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from common.errors import ConfigError
from common.utils.paths import get_assets_dir

REASONS = {
    "loop": "loop",
    "~nobody_here/x": "home directory",
    "a_file": "it is a file",
    os.fsdecode(b"caf\xe9"): "not UTF-8",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "a_file").touch()
    return tmp_path


def where(name: str, folder: Path) -> str:
    return name if name.startswith("~") else str(folder / name)


@pytest.mark.parametrize("name", REASONS, ids=ascii)
def test_what_is_no_folder_is_refused(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESEARCH_ASSETS_DIR", where(name, folder))
    with pytest.raises(ConfigError, match="assets cannot be in") as caught:
        get_assets_dir()
    assert REASONS[name] in caught.value.message
    caught.value.message.encode()


COMMANDS = [
    ("tools/query_experiments.py", "--list"),
    ("tools/query_experiments.py", "--sql", "SELECT 1"),
    ("tools/export.py", "--name", "a", "--format", "hub"),
    ("projects/baseline/train.py", "--config", "configs/quickstart.yaml"),
]


@pytest.mark.parametrize(("name", "command"), zip(REASONS, COMMANDS, strict=True), ids=ascii)
def test_commands_say_so_in_one_line(
    name: str, command: tuple[str, ...], folder: Path, run_tool: Any
) -> None:
    result = run_tool(*command, env={"RESEARCH_ASSETS_DIR": where(name, folder)})
    assert result.returncode == 2 and "Traceback" not in result.stderr, result.stderr
    assert result.stderr.startswith("error [config]: assets cannot be in")
    assert len(result.stderr.splitlines()) == 2  # and the hint


def test_a_folder_that_is_not_there_yet_will_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESEARCH_ASSETS_DIR", str(tmp_path / "é" / "later"))
    assert get_assets_dir() == tmp_path / "é" / "later"
