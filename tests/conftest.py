"""Shared by every test: an assets folder of its own, and real command lines."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common.utils.paths import REPOSITORY_ROOT

SmallDisk = Callable[[str], Path]
RunTool = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def assets_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or writes the user's own assets, and none waits for a network."""
    directory = tmp_path / "assets"
    monkeypatch.setenv("RESEARCH_ASSETS_DIR", str(directory))
    monkeypatch.delenv("RESEARCH_TRACEBACK", raising=False)
    return directory


@pytest.fixture
def run_tool() -> RunTool:
    """`run_tool("tools/query_experiments.py", "--list", cwd=..., env={...})`: a process of its own.

    The script is named from the repository root. Returns `.stdout`, `.stderr`, `.returncode`.
    """

    def run(
        script: str | Path,
        *arguments: object,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
        timeout: float = 120,
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(REPOSITORY_ROOT / script), *map(str, arguments)],
            cwd=cwd or REPOSITORY_ROOT,
            env=os.environ | (env or {}),
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A real file system: `small_disk("256k")` mounts it, `small_disk("1m")` gives it another size."""
    path = tmp_path / "small_disk"
    path.mkdir()
    mounted = False

    def mount(size: str) -> Path:
        nonlocal mounted
        options = f"remount,size={size}" if mounted else f"size={size}"
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(path)]
        try:
            succeeded = subprocess.run(command, capture_output=True).returncode == 0
        except FileNotFoundError:
            succeeded = False
        if not succeeded:
            pytest.skip("cannot mount a file system here")
        mounted = True
        return path

    yield mount
    if mounted:
        subprocess.run(["umount", "--lazy", str(path)], check=True)
