"""Shared by every test: an assets folder of its own, and real command lines."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common.utils.paths import REPOSITORY_ROOT
from tests.fork_server import ForkServer

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side
# A process that a shell starts in the background ignores SIGINT, and so would all that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Or each of hundreds of processes would compile this repository again, and pytest every test.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# Temporary folders are in memory where it has room: tests write much and wait for no disk.
with contextlib.suppress(OSError):
    if shutil.disk_usage("/dev/shm").free > 4 * 2**30 and os.access("/dev/shm", os.W_OK):
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", "/dev/shm")

SmallDisk = Callable[[str], Path]
RunTool = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def assets_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or writes the user's own assets, and none waits for a network."""
    directory = tmp_path / "assets"
    monkeypatch.setenv("RESEARCH_ASSETS_DIR", str(directory))
    monkeypatch.delenv("RESEARCH_TRACEBACK", raising=False)
    return directory


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    with ForkServer() as server:
        yield server


@pytest.fixture
def run_tool(fork_server: ForkServer) -> RunTool:
    """`run_tool("tools/query_experiments.py", "--list", cwd=..., env={...})`: a command line, see fork_server.py.

    The script is named from the repository root. Returns `.stdout`, `.stderr`, `.returncode`.
    """

    def run(
        script: str | Path,
        *arguments: object,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
        timeout: float = 300,
    ) -> subprocess.CompletedProcess[str]:
        return fork_server.run(
            REPOSITORY_ROOT / script,
            *arguments,
            cwd=cwd or REPOSITORY_ROOT,
            env=os.environ | (env or {}),
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
