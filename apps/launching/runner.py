"""What the launcher asks of a place where trials run: this machine, or a cluster."""

from __future__ import annotations

from typing import Protocol

from apps.launching.attempt import Outcome
from apps.launching.sweep import Trial


class Handle(Protocol):
    """A trial that was started here."""

    @property
    def trial(self) -> Trial: ...

    def poll(self) -> Outcome | None:
        """How it ended, reported once, or None while it runs."""

    def interrupt(self, signal_number: int) -> None:
        """Let it save and end."""

    def kill(self) -> None:
        """Now."""


class Runner(Protocol):
    """Where trials run; `parallel` of them at once, looked after every `poll_seconds`."""

    parallel: int
    poll_seconds: float

    def start(self, trial: Trial) -> Handle | None:
        """None while somebody else runs the trial, and when it is over."""
