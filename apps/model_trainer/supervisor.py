"""The job of a worker: start or adopt the trainer of a run, watch it, and record how it ends.

The trainer has a session of its own and holds the run's lock, so it survives its supervisor: the next one
finds the lock held and waits on it. Only one supervisor holds `supervisor.lock`; another delivery returns.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import psutil

from apps.model_trainer.projects import config_path, overrides_of, project_named
from apps.model_trainer.records import RunFolder
from apps.model_trainer.states import TAG, RunState, is_stored_by_service, state_of
from common.errors import ExperimentError
from common.experiments.catalogue import Catalogue
from common.experiments.recovery import open_catalogue
from common.experiments.store import is_running, log_path
from common.utils.paths import REPOSITORY_ROOT

RETRY_SECONDS = (5.0, 30.0, 120.0)  # after a transient failure; progress resets the budget
_POLL_SECONDS = 0.5
_SAVE_SECONDS = 120.0  # from SIGTERM to SIGKILL
_USER_ERROR = 2  # exit code of exit_on_error
_PARENT_DIED = 1  # PR_SET_PDEATHSIG of Linux's prctl


def supervise(run_id: str, attempt: int) -> None:
    """Supervise one attempt at a run; called by RQ in a process of its own."""
    _die_with_parent()
    folder = RunFolder(run_id)
    with _draining() as drain, _only_supervisor(folder) as alone:
        if not alone:
            return
        state = state_of(folder)
        if state.is_terminal or attempt < state.attempt:
            return
        if state.status == "cancelling" and not is_running(run_id):
            return  # cancelled before it began
        Supervision(folder, state, drain).run()


class Supervision:
    """A trainer under watch."""

    def __init__(self, folder: RunFolder, state: RunState, drain: list[bool]) -> None:
        self.folder, self.state, self.drain = folder, state, drain
        self.run_id = folder.run_id
        self.stop_asked: float | None = None  # monotonic seconds, when SIGTERM was sent

    def run(self) -> None:
        """Start or adopt the trainer, wait for its end, record it."""
        process = None if is_running(self.run_id) else self._start()
        step_before = _last_step(self.run_id)
        seen = -1
        while self._is_alive(process):
            size = self.folder.events_path.stat().st_size
            if size != seen:
                seen = size
                self.state = state_of(self.folder)
            if self.state.status == "cancelling" or self.drain:
                self._ask_to_stop(process)
            time.sleep(_POLL_SECONDS if not self.stop_asked else 0.1)
        self._record_end(process, step_before)

    def _start(self) -> subprocess.Popen[bytes]:
        request = self.folder.request()
        project = project_named(request.project)
        arguments = [sys.executable, str(project.directory / "train.py"), "--name", self.run_id]
        arguments += ["--config", str(config_path(project, request.config))]
        for tag in (TAG, *request.tags):
            arguments += ["--tag", tag]
        if log_path(self.run_id).exists():
            arguments.append("--resume")
        arguments += overrides_of(request)
        with self.folder.log_path.open("ab") as log:
            process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=REPOSITORY_ROOT,
                start_new_session=True,
            )
        self.folder.append("started", attempt=self.state.attempt, pid=process.pid)
        return process

    def _is_alive(self, process: subprocess.Popen[bytes] | None) -> bool:
        return process.poll() is None if process is not None else is_running(self.run_id)

    def _ask_to_stop(self, process: subprocess.Popen[bytes] | None) -> None:
        """SIGTERM, on which the trainer saves; SIGKILL if it takes too long."""
        pid = process.pid if process is not None else _pid_of_run(self.run_id)
        if pid is None:
            return
        if self.stop_asked is None:
            self.stop_asked = time.monotonic()
            _signal(pid, signal.SIGTERM)
        elif time.monotonic() - self.stop_asked > _SAVE_SECONDS:
            _signal(pid, signal.SIGKILL)

    def _record_end(self, process: subprocess.Popen[bytes] | None, step_before: int) -> None:
        if log_path(self.run_id).exists():
            open_catalogue()  # completes a run that was killed while finishing
        if is_stored_by_service(self.run_id):
            return
        exit_code = process.poll() if process is not None else None
        reason = self._last_words()
        if self.stop_asked is not None:
            self.folder.append("interrupted", reason="shutdown" if self.drain else "cancelled")
        elif exit_code == _USER_ERROR:
            self.folder.append("failed", category="USER_INPUT", reason=reason)
        elif exit_code is None or exit_code < 0 or exit_code > 128:
            killed = "the trainer was killed" + (f" by signal {-exit_code}" if exit_code else "")
            self._retry(killed, made_progress=_last_step(self.run_id) > step_before)
        else:
            self.folder.append("failed", category="FATAL", reason=reason)

    def _retry(self, reason: str, made_progress: bool) -> None:
        """Try again later, unless all tries since the last progress have failed."""
        tried = 0
        for event in reversed(self.folder.events()):
            if event.kind == "resume" or (event.kind == "retry" and event.facts.get("progress")):
                break
            tried += event.kind == "retry"
        if made_progress:
            tried = 0
        if tried >= len(RETRY_SECONDS):
            self.folder.append("failed", category="TRANSIENT", reason=reason)
            return
        after = time.time() + RETRY_SECONDS[tried]
        self.folder.append("retry", after=after, reason=reason, progress=made_progress)

    def _last_words(self) -> str:
        """The last `error [code]: ...` that the trainer printed, or its last line."""
        try:
            with self.folder.log_path.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 65536))
                text = file.read().decode(errors="replace")
        except FileNotFoundError:
            return "it printed nothing"
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        errors = [line[line.index("error [") :] for line in lines if "error [" in line]
        return (errors or lines or ["it printed nothing"])[-1][:500]


def _last_step(run_id: str) -> int:
    try:
        summaries = Catalogue().summaries(name=run_id)
    except ExperimentError:
        return 0
    return max((summary.last_step for summary in summaries), default=0)


def _pid_of_run(run_id: str) -> int | None:
    """The process that holds the run, as its log records it; None if that is over."""
    try:
        pid = Catalogue().manifest(run_id).get("pid")
    except ExperimentError:
        return None
    return pid if isinstance(pid, int) and psutil.pid_exists(pid) and is_running(run_id) else None


def _signal(pid: int, number: signal.Signals) -> None:
    """Send a signal to a trainer; for SIGKILL also to its children, as torchrun's are."""
    try:
        process = psutil.Process(pid)
        if number is signal.SIGKILL:
            for child in process.children(recursive=True):
                child.kill()
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


@contextmanager
def _only_supervisor(folder: RunFolder) -> Iterator[bool]:
    """Hold the supervisor's lock; False if another process has it."""
    if sys.platform == "win32":
        raise ExperimentError("the service runs on Linux and macOS only", "use WSL")
    import fcntl

    descriptor = os.open(folder.lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(descriptor)


@contextmanager
def _draining() -> Iterator[list[bool]]:
    """A list that becomes non-empty on SIGTERM: the worker shuts down."""
    asked: list[bool] = []

    def ask(number: int, frame: FrameType | None) -> None:
        asked.append(True)

    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)


def _die_with_parent() -> None:
    """Without its worker a supervisor would go on in secret; on Linux it is killed with it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DIED, signal.SIGKILL)
