"""Shared by every test: an assets folder of its own, and real command lines."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from common.utils.paths import REPOSITORY_ROOT

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
