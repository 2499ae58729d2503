"""Run trials as SLURM jobs with submitit, one job each.

Before its time limit, and on preemption, a job lets the training save and requeues itself to
continue. submitit passes the job as a pickle, in a folder that only its user can write to.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apps.launching.attempt import (
    DIED,
    FAILED,
    FINISHED,
    INTERRUPTED,
    Attempt,
    Outcome,
    hold_lock,
    is_stored,
    start_attempt,
)
from apps.launching.command import Command, trial_environment
from apps.launching.sweep import Sweep, Trial
from common.errors import MissingPackageError, ResearchError
from common.experiments.names import is_finished
from common.experiments.store import is_running
from common.utils.files import write_text_atomic
from common.utils.logging import get_logger
from common.utils.paths import get_assets_dir

MOST_REQUEUES = 20  # limit for a training that never finishes
_SECONDS_TO_SAVE = 120  # between the signal and the end of a job
_ASK_EVERY_SECONDS = 10.0  # limit the load on the cluster


@dataclass(frozen=True)
class SlurmOptions:
    """Resources of a job; None: default of the cluster. `extra` are options of sbatch."""

    hours: float
    partition: str | None = None
    account: str | None = None
    gpus: int | None = None
    cpus: int | None = None
    memory_gb: float | None = None
    extra: dict[str, str] = field(default_factory=dict)

    def parameters(self, name: str) -> dict[str, Any]:
        """The options under submitit's names."""
        asked = {
            "name": name,
            "timeout_min": max(1, round(self.hours * 60)),
            "slurm_partition": self.partition,
            "slurm_account": self.account,
            "gpus_per_node": self.gpus,
            "cpus_per_task": self.cpus,
            "mem_gb": self.memory_gb,
            "slurm_signal_delay_s": _SECONDS_TO_SAVE,
            "slurm_additional_parameters": self.extra or None,
        }
        return {key: value for key, value in asked.items() if value is not None}


def check_slurm() -> None:
    """Raise MissingPackageError without submitit, ResearchError without SLURM."""
    try:
        import submitit  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(
            "--slurm needs the package submitit", 'install it: uv pip install -e ".[slurm]"'
        ) from error
    missing = [tool for tool in ("sbatch", "srun", "squeue", "scancel") if not shutil.which(tool)]
    if missing:
        raise ResearchError(
            f"SLURM is not available: {', '.join(missing)} not found",
            "run this on a login node, or leave out --slurm to run on this machine",
        )


class SlurmRunner:
    """At most `parallel` jobs at once."""

    poll_seconds = 2.0

    def __init__(self, command: Command, options: SlurmOptions, parallel: int) -> None:
        check_slurm()
        self.parallel = parallel
        self._queue = Queue()
        self._command, self._options = command, options

    def start(self, trial: Trial) -> SlurmHandle | None:
        lock = hold_lock(trial.lock_path)
        if lock is None:
            return None
        try:
            trial.reload()
            if trial.failed or is_stored(trial.name) or is_running(trial.name):
                return None
            if trial.job_path.exists() and self._queue.holds(trial.job_path.read_text().strip()):
                return None
            trial.check_name_is_ours()
            trial.save()  # read by the job
            job = self._submit(trial)
            write_text_atomic(trial.job_path, job)
        finally:
            os.close(lock)
        return SlurmHandle(trial, job, self._queue)

    def _submit(self, trial: Trial) -> str:
        import submitit
        from submitit.core.utils import FailedJobError

        name, folder = trial.sweep.name, trial.sweep.folder
        executor = submitit.AutoExecutor(
            folder=folder / "slurm", cluster="slurm", slurm_max_num_timeout=MOST_REQUEUES
        )
        executor.update_parameters(**self._options.parameters(trial.name))
        directory, assets = str(Path.cwd()), str(get_assets_dir())
        work = TrialJob(name, str(folder), trial.number, self._command, directory, assets)
        try:
            job = executor.submit(work).job_id
        except FailedJobError as error:
            raise ResearchError(f"sbatch refused: {' '.join(str(error).split())}") from error
        self._queue.add(job)
        return job


class SlurmHandle:
    """A submitted job."""

    def __init__(self, trial: Trial, job: str, queue: Queue) -> None:
        self.trial, self._job, self._queue = trial, job, queue
        self._stopping = False

    def poll(self) -> Outcome | None:
        gone = not self._queue.holds(self._job)  # first: output of an ended job is complete
        if is_stored(self.trial.name) if gone else is_finished(self.trial.name):
            return Outcome(FINISHED)
        self.trial.reload()
        if self.trial.failed:
            return Outcome(FAILED, self.trial.failed)
        if not gone:
            return None
        if self._stopping:
            return Outcome(INTERRUPTED)
        return Outcome(DIED, f"job {self._job} ended before the trial finished")

    def interrupt(self, signal_number: int) -> None:
        # Not a plain scancel, which gives a running job only half a minute to save.
        self._stopping = True
        _scancel("--state=PENDING", self._job)
        _scancel("--signal=TERM", self._job)

    def kill(self) -> None:
        _scancel(self._job)


class Queue:
    """The pending and running jobs of this user, from squeue."""

    def __init__(self) -> None:
        self._jobs: set[str] = set()
        self._asked: float | None = None

    def holds(self, job: str) -> bool:
        """Raises ResearchError if squeue has never answered; later its last answer is used."""
        if self._asked is None or time.monotonic() - self._asked > _ASK_EVERY_SECONDS:
            self._ask()
        return job in self._jobs

    def add(self, job: str) -> None:
        self._jobs.add(job)

    def _ask(self) -> None:
        command = ["squeue", "--me", "--noheader", "--format=%i"]
        try:
            result = subprocess.run(command, capture_output=True, text=True, timeout=60)
            complaint = result.stderr.strip() if result.returncode else ""
        except subprocess.TimeoutExpired:
            complaint = "no answer within a minute"
        if complaint and self._asked is None:
            raise ResearchError(f"squeue: {complaint}")
        self._asked = time.monotonic()
        if complaint:  # a busy controller does not mean that jobs are dead
            get_logger("launching").warning(f"squeue: {complaint}; retrying later")
        else:
            self._jobs = set(result.stdout.split())


def _scancel(*arguments: str) -> None:
    subprocess.run(["scancel", *arguments], capture_output=True, timeout=60)


@dataclass
class TrialJob:
    """The callable that runs inside the job."""

    sweep_name: str
    folder: str
    number: int
    command: Command
    directory: str
    assets_dir: str
    _attempt: Attempt | None = field(default=None, init=False)

    def __call__(self) -> None:
        os.environ["RESEARCH_ASSETS_DIR"] = self.assets_dir  # sbatch may not pass it on
        trials = Sweep(self.sweep_name, Path(self.folder)).trials()
        trial = next(trial for trial in trials if trial.number == self.number)
        self._attempt = start_attempt(
            trial,
            self.command,
            trial_environment(1, self.command.nproc),
            directory=Path(self.directory),
            lock_timeout_seconds=120,  # the submitting process still holds the lock
        )
        if self._attempt is None:
            print(f"{trial.name} is running elsewhere, or finished")
            return
        signal.signal(signal.SIGTERM, lambda number, frame: self._stop())
        while (outcome := self._attempt.poll()) is None:
            time.sleep(0.5)
        print(f"{trial.name} {outcome.kind} {outcome.reason}")

    def _stop(self) -> None:
        if self._attempt is not None:
            self._attempt.interrupt(signal.SIGTERM)

    def checkpoint(self) -> Any:
        """Called by submitit in a signal handler before the job is stopped: return what to requeue."""
        from submitit.helpers import DelayedSubmission

        self._stop()
        if self._attempt is not None:
            self._attempt.wait_in_signal_handler()
        return DelayedSubmission(dataclasses.replace(self))
