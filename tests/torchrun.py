"""Training by several context, as a user starts it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from common.utils.paths import REPOSITORY_ROOT
from tests.fork_server import ForkServer


@contextmanager
def torchrun(count: int, script: Path, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Processes that are gone at the end of the block, whatever happens in it."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY_ROOT)}
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    process = subprocess.Popen(
        [sys.executable, *launcher, str(script), *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        for worker in workers(process):
            worker.kill()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The training processes of a torchrun, in the order of their ranks."""
    try:
        children = psutil.Process(process.pid).children(recursive=True)
        ranks = {int(child.environ()["RANK"]): child for child in children}
    except (psutil.NoSuchProcess, KeyError):
        return []
    return [ranks[rank] for rank in sorted(ranks)]


def run_processes(
    count: int, script: Path, *arguments: object, timeout: float = 300
) -> tuple[int, str]:
    """(exit code, everything printed) of a script in so many context."""
    with torchrun(count, script, *arguments) as process:
        output, _ = process.communicate(timeout=timeout)
    return process.returncode, output


def fork_processes(
    server: ForkServer,
    count: int,
    script: Path,
    *arguments: object,
    timeout: float = 300,
    strikes: Sequence[dict[str, Any]] = (),
) -> tuple[int, str]:
    """As `run_processes`, but started by the fork server as torchrun does, each in two seconds less.

    `strikes` hit the main process, see fork_server.py.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    shared |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    with tempfile.TemporaryFile("w+") as log, Path(os.devnull).open() as stdin:
        ranks = [
            server.start(
                script,
                *arguments,
                env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                strikes=() if rank else strikes,
                stdin=stdin,
                stdout=log,
                stderr=log,
            )
            for rank in range(count)
        ]
        try:
            codes = [rank.wait(timeout) for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
        log.seek(0)
        return max(codes, key=abs), log.read()
