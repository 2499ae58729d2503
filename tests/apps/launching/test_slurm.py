"""Sweeps as SLURM jobs: submitit and real processes, on a cluster of one node (slurm_double.py)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from apps.launching.slurm import Queue, SlurmOptions, check_slurm
from apps.launching.sweep import get_sweeps_dir
from common.errors import ResearchError
from common.experiments.catalogue import Catalogue
from common.utils.paths import REPOSITORY_ROOT
from tests.apps.launching import slurm_double
from tests.apps.launching.conftest import TINY, until
from tests.conftest import RunTool

pytestmark = pytest.mark.slow
Launched = Callable[..., tuple[int, str, str]]
pytest.importorskip("submitit")


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "slurm"
    slurm_double.install(folder)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    yield folder
    slurm_double.stop(folder)


class Launch:
    """`tools/launch.py --slurm` as a process; killed at the end of the block."""

    def __init__(self, *arguments: str) -> None:
        tool = str(REPOSITORY_ROOT / "tools" / "launch.py")
        self.command = [sys.executable, tool, TINY, "--config", "tiny.yaml", "--sweep", "s"]
        self.command += ["--slurm", *arguments]

    def __enter__(self) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(self.command, stdout=pipe, stderr=pipe, text=True)
        return self.process

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def launched(run_tool: RunTool) -> Launched:
    """(exit code, standard output, standard error) of a launch, to its end."""

    def launched(*arguments: str) -> tuple[int, str, str]:
        command = [TINY, "--config", "tiny.yaml", "--sweep", "s", "--slurm", *arguments]
        done = run_tool("tools/launch.py", *command, timeout=120)
        return done.returncode, done.stdout, done.stderr

    return launched


def rows(name: str) -> int:
    return sum(summary.num_values for summary in Catalogue().summaries("loss", name))


def statuses() -> dict[str, str]:
    return {run.name: run.status for run in Catalogue().overview()}


def test_every_trial_is_a_job_that_asks_for_what_it_needs(
    cluster: Path, launched: Launched
) -> None:
    code, out, error = launched(
        *("--partition", "gpu", "--gpus", "1", "--hours", "1.5", "--cpus", "3"),
        *("--memory-gb", "8", "--account", "lab", "--sbatch", "qos=high", "lr=1e-2,1e-3"),
    )
    assert code == 0, error
    assert statuses() == {"s_000": "finished", "s_001": "finished"}
    assert out.splitlines()[2].split()[1] == "s_001", "the ranking, best first"
    first, _ = slurm_double.jobs(cluster)
    script = (cluster / "jobs" / f"{first}.sh").read_text()
    for option in ("partition=gpu", "gpus-per-node=1", "time=90", "cpus-per-task=3", "mem=8GB"):
        assert f"#SBATCH --{option}\n" in script
    for option in ("account=lab", "qos=high", "job-name=s_000", "signal=USR2@120"):
        assert f"#SBATCH --{option}\n" in script
    assert Catalogue().manifest("s_001")["tags"] == ["sweep:s"]


def test_a_job_that_is_killed_is_submitted_again(cluster: Path, launched: Launched) -> None:
    code, _, error = launched("misbehave=die_once", "steps=5")
    assert code == 0, error
    assert statuses() == {"s_000": "finished"} and rows("s_000") == 5
    assert len(slurm_double.jobs(cluster)) == 2 and "retrying (1 of 2)" in error


def test_an_error_of_its_own_is_told_and_not_submitted_again(
    cluster: Path, launched: Launched
) -> None:
    code, out, error = launched("misbehave=error")
    assert code == 2 and "1 of 1 trials did not finish" in error
    assert "s_000: error [training]: the loss is nan" in out
    assert len(slurm_double.jobs(cluster)) == 1


def test_a_job_whose_time_is_over_saves_and_queues_itself_again(cluster: Path) -> None:
    with Launch("steps=3", "step_seconds=1") as process:
        until(lambda: rows("s_000"))
        (job,) = slurm_double.jobs(cluster)
        step = slurm_double.step_pid(cluster, job)
        assert step is not None
        os.kill(step, signal.SIGUSR2)  # as SLURM does `signal=USR2@120` before the end
        _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert rows("s_000") == 3 and len(slurm_double.jobs(cluster)) == 1
    log = (get_sweeps_dir() / "s" / "logs" / "000.log").read_text()
    assert "rows are saved" in log and "--resume" in log
    assert "died" not in error, "the launcher need not know"


def test_ctrl_c_lets_the_jobs_save_and_end(cluster: Path) -> None:
    with Launch("step_seconds=60", "seed=0,1") as process:
        until(lambda: rows("s_000") and rows("s_001"))
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "stopped with 0 of 2 trials finished; to continue: python " in error
    assert set(statuses().values()) == {"interrupted"}
    assert all((cluster / "jobs" / f"{job}.done").exists() for job in slurm_double.jobs(cluster))


def test_detached_jobs_are_looked_after_by_the_same_command(
    cluster: Path, launched: Launched
) -> None:
    sweep = ("step_seconds=3", "steps=2", "seed=0,1,2")
    code, out, error = launched("--detach", *sweep)
    assert code == 0, error
    assert "to watch them: python" in out and len(slurm_double.jobs(cluster)) == 3
    assert "finished" not in statuses().values(), "it has not waited"
    code, _, error = launched(*sweep)
    assert code == 0, error
    assert list(statuses().values()) == ["finished"] * 3
    assert len(slurm_double.jobs(cluster)) == 3, "no job twice"


def test_what_sbatch_refuses_is_one_line(cluster: Path, launched: Launched) -> None:
    code, _, error = launched("--partition", "nowhere")
    assert code == 2 and "Traceback" not in error
    assert "sbatch refused" in error and "invalid partition specified: nowhere" in error


def test_without_slurm_nothing_is_begun(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, launched: Launched
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ResearchError, match="SLURM is not available"):
        check_slurm()
    code, _, error = launched("lr=1,2")
    assert code == 2 and "SLURM is not available: sbatch" in error
    assert not get_sweeps_dir().exists()


def test_a_busy_controller_is_no_reason_to_take_jobs_for_dead(
    cluster: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apps.launching.slurm._ASK_EVERY_SECONDS", 0.0)
    (cluster / "jobs" / "1000.sh").touch()
    queue = Queue()
    assert queue.holds("1000") and not queue.holds("1001")
    (cluster / "squeue").write_text("#!/bin/sh\necho 'Socket timed out' >&2\nexit 1\n")
    assert queue.holds("1000")
    with pytest.raises(ResearchError, match="squeue: Socket timed out"):
        Queue().holds("1000")


def test_what_is_not_asked_for_is_left_to_the_cluster() -> None:
    parameters = SlurmOptions(hours=0.001).parameters("x")
    assert parameters == {"name": "x", "timeout_min": 1, "slurm_signal_delay_s": 120}
