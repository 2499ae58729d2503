"""Keep the queue in agreement with the files: every run that waits has a job, whatever Redis has lost."""

from __future__ import annotations

import threading
import time

import redis

from apps.model_trainer.queue import JobQueue
from apps.model_trainer.records import RunFolder, list_runs
from apps.model_trainer.states import RunState, state_of
from common.utils.logging import get_logger

_SECONDS = 0.5
_BETWEEN_SECONDS = 1.0
log = get_logger("service")


class Reconciler:
    """Derives the state of all runs, and queues those that no supervisor holds and no job waits for.

    Any number of processes may do so: a run that gets two jobs has one supervisor.
    """

    def __init__(self, queue: JobQueue) -> None:
        self.queue = queue
        self.states: dict[str, RunState] = {}
        self._unheld: dict[str, float] = {}  # since when, in monotonic seconds
        self._done: dict[str, int] = {}  # size of the event file of a run that has ended
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def reconcile(self) -> None:
        """Look at every run once."""
        for run_id in list_runs():
            self.refresh(run_id)

    def refresh(self, run_id: str) -> RunState | None:
        """Derive the state of a run, and queue it if need be; None if there is no such run."""
        folder = RunFolder(run_id)
        if not folder.exists():
            return None
        size = folder.events_path.stat().st_size
        with self._lock:
            known = self.states.get(run_id)
            if known is not None and self._done.get(run_id) == size:
                return known  # ended, and no event since
            state = state_of(folder)
            if state == known:
                state = known  # the same object: answers made of it stay valid
            self.states[run_id] = state
            if state.is_terminal:
                self._done[run_id] = size
            elif state.supervised:
                self._unheld.pop(run_id, None)
            else:
                self._queue(folder, state)
        return state

    def _queue(self, folder: RunFolder, state: RunState) -> None:
        if state.retry_after > time.time():
            return
        try:
            if state.attempt and self.queue.is_waiting(folder.run_id, state.attempt):
                self._unheld.pop(folder.run_id, None)
                return
            # Between the queue and its supervisor a job is nowhere for a moment.
            since = self._unheld.setdefault(folder.run_id, time.monotonic())
            if state.attempt and time.monotonic() - since < _BETWEEN_SECONDS:
                return
            del self._unheld[folder.run_id]
            attempt = state.attempt + 1
            # Runs that were started before go on before new ones begin. The event follows: without
            # Redis there would be one for each try.
            self.queue.enqueue(folder.run_id, attempt, first=state.attempt > 0)
            folder.append("queued", attempt=attempt)
        except redis.RedisError as error:
            log.warning(f"{folder.run_id} waits: Redis does not answer ({type(error).__name__})")

    def run(self) -> None:
        """Reconcile every half second until `stop`."""
        while not self._stopped.is_set():
            started = time.monotonic()
            try:
                self.reconcile()
            except Exception:  # of whatever kind: without this thread nothing would be queued again
                log.exception("cannot reconcile; trying again")
            self._stopped.wait(max(0.0, _SECONDS - (time.monotonic() - started)))

    def stop(self) -> None:
        """End `run`."""
        self._stopped.set()
