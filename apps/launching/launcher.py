"""The loop: start trials, watch them, retry those that die, stop all on Ctrl-C."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from apps.launching.attempt import DIED, FAILED, FINISHED, Outcome, hold_lock
from apps.launching.runner import Handle, Runner
from apps.launching.search import Search
from apps.launching.sweep import Sweep, Trial
from apps.launching.view import View
from common.errors import Interrupted
from common.experiments.recovery import open_catalogue

_LOOK_EVERY_SECONDS = 1.0
_SECONDS_TO_SAVE = 120.0


class Launcher:
    """Runs the remaining trials of a sweep. Several launchers may run the same sweep concurrently.

    A trial that dies is retried `retries` times from its last checkpoint; one that ends with an
    error is given up, unless `retry_failed`. With `detach` trials are started and not watched.
    `resume_command` is printed when the sweep is stopped.
    """

    def __init__(
        self,
        sweep: Sweep,
        search: Search,
        runner: Runner,
        view: View,
        *,
        retries: int = 2,
        retry_failed: bool = False,
        detach: bool = False,
        resume_command: str = "",
    ) -> None:
        self._sweep, self._search, self._runner, self._view = sweep, search, runner, view
        self._retries, self._retry_failed, self._detach = retries, retry_failed, detach
        self._resume_command = resume_command
        self._ours: dict[int, Handle] = {}
        self._finished: set[int] = set()
        self._elsewhere: set[int] = set()
        self._deaths: Counter[int] = Counter()
        self.given_up: dict[int, str] = {}  # reason by trial number

    def run(self) -> None:
        """Run until every trial is finished or given up. Raises Interrupted if stopped."""
        try:
            with _collected_signals() as received, self._view:
                self._begin()
                try:
                    while not self._round(received):
                        time.sleep(self._runner.poll_seconds)
                except Interrupted:
                    raise
                except BaseException:
                    self._abandon()
                    raise
        finally:
            self._search.close()

    def _begin(self) -> None:
        self._forwarded, self._next_look = 0, 0.0
        overview = {run.name: run for run in open_catalogue().overview(archived=True)}
        for trial in self._sweep.trials():
            if trial.name in overview:
                trial.check_name_is_ours()
            if trial.failed and self._retry_failed:
                self._forget_failure(trial)

    def _forget_failure(self, trial: Trial) -> None:
        if (lock := hold_lock(trial.lock_path)) is not None:  # otherwise another process runs it
            trial.reload()
            trial.failed = None
            trial.save()
            os.close(lock)

    def _round(self, received: list[int]) -> bool:
        """Check the trials once. Returns True when all are done."""
        ended = self._reap()
        if received:
            self._stop(received)
        elif ended or time.monotonic() >= self._next_look:
            self._look()
            self._next_look = time.monotonic() + _LOOK_EVERY_SECONDS
            return self._is_over()
        return False

    def _reap(self) -> bool:
        ended = {n: outcome for n, h in self._ours.items() if (outcome := h.poll()) is not None}
        for number, outcome in ended.items():
            trial = self._ours.pop(number).trial
            if outcome.kind == FINISHED:
                self._finished.add(number)
            elif outcome.kind == DIED:
                outcome = self._count_death(trial, outcome)
            self._view.ended(trial, outcome)
        return bool(ended)

    def _count_death(self, trial: Trial, outcome: Outcome) -> Outcome:
        self._deaths[trial.number] += 1
        tries, most = self._deaths[trial.number], self._retries
        if tries <= most:
            return Outcome(DIED, f"{outcome.reason}; retrying ({tries} of {most})")
        self.given_up[trial.number] = outcome.reason
        return outcome

    def _look(self) -> None:
        """Start trials up to the limit, and show the progress."""
        overview = {run.name: run for run in open_catalogue().overview(archived=True)}
        for trial in self._sweep.trials():
            if (run := overview.get(trial.name)) and run.status == "finished":
                self._finished.add(trial.number)
        self._elsewhere.clear()
        for trial in self._sweep.trials():
            if self._is_open(trial) and self._has_room():
                self._start(trial)
        while self._has_room() and (asked := self._search.ask()) is not None:
            self._start(asked)
        failed = {trial.number for trial in self._sweep.trials() if trial.failed}
        failed |= self.given_up.keys()
        self._view.show(
            overview,
            finished=len(self._finished),
            running=list(self._ours),
            failed=len(failed - self._finished),
            elsewhere=len(self._elsewhere),
        )

    def _is_open(self, trial: Trial) -> bool:
        over = self._finished | self.given_up.keys() | self._ours.keys()
        return trial.number not in over and not trial.failed

    def _has_room(self) -> bool:
        return len(self._ours) < self._runner.parallel

    def _start(self, trial: Trial) -> None:
        handle = self._runner.start(trial)
        if handle is not None:
            self._ours[trial.number] = handle
            self._view.started(trial)
        elif trial.failed:
            self._view.ended(trial, Outcome(FAILED, trial.failed))  # recorded by another launcher
        else:
            self._elsewhere.add(trial.number)

    def _is_over(self) -> bool:
        return self._detach or (not self._ours and not self._elsewhere)

    def _stop(self, received: list[int]) -> None:
        """Forward signals: the first lets trials save, the second ends them sooner, the third kills them."""
        for count in range(self._forwarded, len(received)):
            for handle in self._ours.values():
                if count < 2:
                    handle.interrupt(received[count])
                else:
                    handle.kill()
            self._view.stopping(len(self._ours))
        self._forwarded = len(received)
        if not self._ours:
            done, total = len(self._finished), max(self._search.total, len(self._sweep.trials()))
            how = self._resume_command or "launch the same sweep again"
            raise Interrupted(
                f"stopped with {done} of {total} trials finished; to continue: {how}", received[0]
            )

    def _abandon(self) -> None:
        """Stop all trials after an error of ours: none may run unwatched."""
        deadline = time.monotonic() + _SECONDS_TO_SAVE
        for handle in self._ours.values():
            handle.interrupt(signal.SIGTERM)
        while self._ours:
            self._ours = {n: h for n, h in self._ours.items() if h.poll() is None}
            if time.monotonic() > deadline:
                for handle in self._ours.values():
                    handle.kill()
            time.sleep(self._runner.poll_seconds)


@contextmanager
def _collected_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM, handled between two checks. SIGHUP counts as SIGTERM unless it is
    ignored (nohup)."""
    received: list[int] = []
    means = {signal.SIGINT: signal.SIGINT, signal.SIGTERM: signal.SIGTERM}
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        means[signal.SIGHUP] = signal.SIGTERM
    previous = {number: signal.getsignal(number) for number in means}

    def receive(number: int, frame: object) -> None:
        received.append(means[signal.Signals(number)])

    for number in means:
        signal.signal(number, receive)
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
