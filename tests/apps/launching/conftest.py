"""Sweeps over tiny_train.py, and processes that are gone when a test ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from apps.launching.attempt import Attempt, Outcome, start_attempt
from apps.launching.command import Command, trial_environment
from apps.launching.sweep import Definition, Sweep, Trial, open_sweep

TINY = str(Path(__file__).with_name("tiny_train.py"))
COMMAND = Command(TINY, "tiny.yaml")
MakeSweep = Callable[..., Sweep]
Begin = Callable[[Trial], "Attempt | None"]


@pytest.fixture
def make_sweep() -> MakeSweep:
    """`make_sweep({"lr": "1"}, {"lr": "2"})`: a sweep of these trials."""

    def make(*values: dict[str, str]) -> Sweep:
        sweep = open_sweep("s", Definition(TINY, {}, {"kind": "grid"}, None, {}))
        with sweep.locked():
            for number, each in enumerate(values):
                sweep.add_trial(number, each)
        return sweep

    return make


@pytest.fixture
def begin() -> Iterator[Begin]:
    """`start_attempt` of tiny_train.py."""
    begun: list[Attempt] = []

    def begin(trial: Trial) -> Attempt | None:
        attempt = start_attempt(trial, COMMAND, trial_environment(1, None))
        if attempt is not None:
            begun.append(attempt)
        return attempt

    yield begin
    for attempt in begun:
        attempt.kill()
        attempt.process.wait()


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait for what has to come."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)


def end_of(attempt: Attempt | None) -> Outcome:
    assert attempt is not None
    until(lambda: attempt.process.poll() is not None)
    outcome = attempt.poll()
    assert outcome is not None
    return outcome
