"""Locks where the file system has none: runs are seen, and nothing waits for ever."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from common.utils.file_locks import file_lock, is_locked, lockable

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="names descriptors by /proc")

# What the kernel answers for a file of such a file system.
WITHOUT_LOCKS = """
import errno, fcntl, os, sys
flock = fcntl.flock
def refuse(file, operation):
    descriptor = file if isinstance(file, int) else file.fileno()
    if os.readlink(f"/proc/self/fd/{{descriptor}}").startswith(os.environ["RESEARCH_ASSETS_DIR"]):
        raise OSError(errno.{error}, os.strerror(errno.{error}))
    return flock(file, operation)
fcntl.flock = refuse
"""
LIVE = """
from common.utils import start_experiment
run = start_experiment("live")
run.log({"loss": 1.0}, step=0)
print("logged", flush=True)
sys.stdin.read()
"""
ASK = """
import pandas as pd
from common.utils import save_experiment
from common.experiments.annotate import annotate_experiment
from common.experiments.store import is_running, lock_of
from common.experiments.packing import pack_experiments
from filelock import Timeout
try:
    with lock_of("live").acquire(blocking=False):
        print("free", end=" ")
except Timeout:
    print("held", end=" ")
save_experiment(sys.argv[1], pd.DataFrame({"loss": [1.0]}))
annotate_experiment(sys.argv[1], add_tags=["x"])
print(is_running("live"), pack_experiments(), flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("error", ["ENOLCK", "ENOSYS", "EOPNOTSUPP"])
def test_a_store_without_locks_works_and_shows_which_runs_are_alive(error: str) -> None:
    begin = WITHOUT_LOCKS.format(error=error)
    pipe = subprocess.PIPE

    def ask(name: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", begin + ASK, name]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)

    live = subprocess.Popen(
        [sys.executable, "-c", begin + LIVE], stdin=pipe, stdout=pipe, stderr=pipe, text=True
    )
    assert live.stdout is not None
    assert live.stdout.readline() == "logged\n"
    first = ask("a")
    assert first.stdout == "held True 1\n"
    live.kill()
    assert "has no file locks" in live.communicate()[1]
    second = ask("b")
    assert second.stdout == "free False 1\n"
    assert second.stderr.count("has no file locks") == 2  # the store, and its packs


def test_a_folder_with_locks_is_locked_itself(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    assert not is_locked(path) and not path.exists()
    with file_lock(path):
        assert is_locked(path) and lockable(path) == path
    assert not is_locked(path)
