"""A SLURM of one node for the tests: sbatch, srun, squeue, scancel and scontrol as real programs.

`install(folder)` makes them; with that folder first in PATH, jobs are real processes. They are kept
in `folder/jobs`; `stop(folder)` kills whatever is left.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

TOOLS = ("sbatch", "srun", "squeue", "scancel", "scontrol")


def install(folder: Path) -> None:
    (folder / "jobs").mkdir(parents=True)
    for tool in TOOLS:
        path = folder / tool
        path.write_text(f'#!/bin/sh\nexec {sys.executable} -S {__file__} {tool} {folder} "$@"\n')
        path.chmod(0o755)


def jobs(folder: Path) -> list[str]:
    return sorted((p.stem for p in (folder / "jobs").glob("*.sh")), key=int)


def step_pid(folder: Path, job: str) -> int | None:
    """The process that srun has become."""
    path = folder / "jobs" / f"{job}.step"
    return int(path.read_text()) if path.exists() and path.read_text() else None


def stop(folder: Path) -> None:
    """Kill every node with what runs on it."""
    for job in jobs(folder):
        for kind in ("step", "node"):
            with suppress(FileNotFoundError, ProcessLookupError, ValueError):
                os.killpg(int((folder / "jobs" / f"{job}.{kind}").read_text()), signal.SIGKILL)


def sbatch(folder: Path, arguments: list[str]) -> None:
    job = str(1000 + len(jobs(folder)))
    script = folder / "jobs" / f"{job}.sh"
    script.write_text(Path(arguments[-1]).read_text())
    if "--partition=nowhere" in script.read_text():
        script.unlink()
        sys.exit("sbatch: error: invalid partition specified: nowhere")
    node = subprocess.Popen(
        [sys.executable, "-S", __file__, "node", str(folder), job],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    (folder / "jobs" / f"{job}.node").write_text(str(node.pid))
    print(f"Submitted batch job {job}")


def node(folder: Path, arguments: list[str]) -> None:
    (job,) = arguments
    environment = os.environ | {
        "SLURM_JOB_ID": job,
        "SLURM_NTASKS": "1",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_NODEID": "0",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_JOB_NODELIST": "here",
    }
    again = folder / "jobs" / f"{job}.requeue"
    while True:
        subprocess.run(["bash", str(folder / "jobs" / f"{job}.sh")], env=environment)
        (folder / "jobs" / f"{job}.step").unlink(missing_ok=True)
        if not again.exists():
            break
        again.unlink()
    (folder / "jobs" / f"{job}.done").touch()


def srun(folder: Path, arguments: list[str]) -> None:
    job = os.environ["SLURM_JOB_ID"]
    outputs = {"--output": 1, "--error": 2}
    while arguments[0].startswith("--"):
        option = arguments.pop(0)
        if option in outputs:
            path = arguments.pop(0).replace("%j", job).replace("%t", "0")
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), outputs[option])
    os.setsid()
    (folder / "jobs" / f"{job}.step").write_text(str(os.getpid()))
    os.execvp(arguments[0], arguments)


def squeue(folder: Path, arguments: list[str]) -> None:
    assert "--me" in arguments and "--noheader" in arguments
    for job in jobs(folder):
        if not (folder / "jobs" / f"{job}.done").exists():
            print(job)


def scancel(folder: Path, arguments: list[str]) -> None:
    *options, job = arguments
    if "--state=PENDING" in options:
        return  # jobs never wait here
    end = time.monotonic() + 5
    while (pid := step_pid(folder, job)) is None:
        if time.monotonic() > end or (folder / "jobs" / f"{job}.done").exists():
            return
        time.sleep(0.05)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)


def scontrol(folder: Path, arguments: list[str]) -> None:
    assert arguments[0] == "requeue"
    (folder / "jobs" / f"{arguments[1]}.requeue").touch()


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]), sys.argv[3:])
