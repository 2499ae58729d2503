"""Interface of places to run trials: this machine, or a cluster."""

from __future__ import annotations

from typing import Protocol

from apps.launching.attempt import Outcome
from apps.launching.sweep import Trial


class Handle(Protocol):
    """A started trial."""

    @property
    def trial(self) -> Trial: ...

    def poll(self) -> Outcome | None:
        """Return the outcome once, None while it runs."""

    def interrupt(self, signal_number: int) -> None:
        """Ask it to save and exit."""

    def kill(self) -> None:
        """Now."""


class Runner(Protocol):
    """Runs trials, `parallel` at once, polled every `poll_seconds`."""

    parallel: int
    poll_seconds: float

    def start(self, trial: Trial) -> Handle | None:
        """Start a trial; None if another process runs it or it is finished."""
