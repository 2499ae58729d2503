"""One attempt at a trial: process, lock and outcome.

The process of the trial also has the lock file open, so the lock is held until it ends, even if the
launcher is killed: no other launcher starts the trial before.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

from apps.launching.command import Command
from apps.launching.sweep import Trial
from common.errors import ResearchError
from common.experiments import store
from common.experiments.names import is_finished
from common.experiments.recovery import open_catalogue
from common.experiments.store import is_running
from common.utils.file_locks import lockable
from common.utils.files import named_in_errors
from common.utils.manifest import now

FINISHED, FAILED, DIED, INTERRUPTED = "finished", "failed", "died", "interrupted"
_OWN_ERROR = 2  # the exit code of exit_on_error and of argparse


class Outcome(NamedTuple):
    """`finished`: stored. `failed`: ended with an error, which would recur. `died`: killed or
    crashed. `interrupted`: stopped by us."""

    kind: str
    reason: str = ""


class Attempt:
    """A running trial, created by `start_attempt`."""

    def __init__(
        self, trial: Trial, process: subprocess.Popen[bytes], lock: int, log_start: int
    ) -> None:
        self.trial = trial
        self.process = process
        self._lock = lock
        self._log_start = log_start  # offset of this attempt's output
        self._stopping = False

    def poll(self) -> Outcome | None:
        """Return the outcome once, None while it runs."""
        exit_code = self.process.poll()
        if exit_code is None:
            return None
        outcome = self._judge(exit_code)
        if outcome.kind == FAILED:
            self.trial.failed = outcome.reason
            self.trial.save()
        os.close(self._lock)
        return outcome

    def interrupt(self, signal_number: int) -> None:
        """Ask it to save and exit."""
        self._stopping = True
        self.process.send_signal(signal_number)  # a no-op when it has ended

    def kill(self) -> None:
        """Kill it with all its children: processes of torchrun have their own sessions."""
        with suppress(psutil.NoSuchProcess):
            root = psutil.Process(self.process.pid)
            for process in [*root.children(recursive=True), root]:
                with suppress(psutil.NoSuchProcess):
                    process.kill()

    def wait_in_signal_handler(self) -> None:
        """Wait until it has ended; `poll`, which a signal may have interrupted, still returns the outcome."""
        with suppress(ChildProcessError):  # already ended
            os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)

    def _judge(self, exit_code: int) -> Outcome:
        if is_stored(self.trial.name):
            return Outcome(FINISHED)
        if self._stopping:
            return Outcome(INTERRUPTED)
        error, last = self._last_words()
        if exit_code == 0:
            return Outcome(FAILED, "it exited successfully, but stored no experiment")
        # torchrun exits with 1 for any error of its processes.
        if exit_code == _OWN_ERROR or (exit_code > 0 and error):
            return Outcome(FAILED, error or last)
        if exit_code < 0:
            return Outcome(DIED, f"killed by {signal.Signals(-exit_code).name}")
        return Outcome(DIED, f"exit code {exit_code}: {last}")

    def _last_words(self) -> tuple[str, str]:
        """Return (the last `error [code]: ...` of this attempt, the last line)"""
        with self.trial.log_path.open("rb") as file:
            file.seek(self._log_start)
            text = file.read().decode(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        errors = [
            line[line.index("error [") :] for line in lines if "error [" in line and "]: " in line
        ]
        return errors[-1] if errors else "", lines[-1] if lines else "it printed nothing"


def start_attempt(
    trial: Trial,
    command: Command,
    environment: Mapping[str, str],
    *,
    directory: Path | None = None,
    lock_timeout_seconds: float = 0.0,
) -> Attempt | None:
    """Start or resume `trial`; None if another process runs it or it is finished. Raises
    ExperimentError if its name belongs to another experiment."""
    lock = hold_lock(trial.lock_path, lock_timeout_seconds)
    if lock is None:
        return None
    try:
        trial.reload()
        if trial.failed or is_stored(trial.name) or is_running(trial.name):
            os.close(lock)
            return None
        trial.check_name_is_ours()
        trial.started = trial.started or now()
        trial.save()
        return _spawn(trial, command, environment, directory, lock)
    except BaseException:
        os.close(lock)
        raise


def _spawn(
    trial: Trial,
    command: Command,
    environment: Mapping[str, str],
    directory: Path | None,
    lock: int,
) -> Attempt:
    options = ["--name", trial.name, "--tag", trial.sweep.tag]
    options += ["--share-auto", str(trial.sweep.auto_path)]
    if store.log_path(trial.name).exists():
        options.append("--resume")
    arguments = command.arguments(trial.values, *options)
    with trial.log_path.open("a", encoding="utf-8") as log:
        with named_in_errors(trial.log_path):
            log.write(f"--- {now()} {' '.join(arguments)}\n")
            log.flush()
        log_start = log.tell()
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            cwd=directory,
            pass_fds=[lock],
            start_new_session=True,  # we forward a Ctrl-C of the terminal once
        )
    return Attempt(trial, process, lock, log_start)


def is_stored(name: str) -> bool:
    """Whether the experiment is finished; completes one that was killed while finishing."""
    if store.log_path(name).exists():
        open_catalogue()
    return is_finished(name)


def hold_lock(path: Path, timeout_seconds: float = 0.0) -> int | None:
    """Lock `path` and return its descriptor; the lock is held until every process with it open
    closes it. None if another process holds it for longer than `timeout_seconds`."""
    if sys.platform == "win32":
        raise ResearchError("trials are launched on Linux and macOS only", "use WSL")
    import fcntl

    descriptor = os.open(lockable(path), os.O_RDWR | os.O_CREAT, 0o666)
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(descriptor)
                return None
            time.sleep(0.2)
