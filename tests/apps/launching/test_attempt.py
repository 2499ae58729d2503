"""Attempts at a trial: real processes, their locks and their ends."""

from __future__ import annotations

import os
import signal

import pytest

from apps.launching.attempt import Outcome, hold_lock, is_stored
from apps.launching.sweep import Sweep
from common.errors import ExperimentError
from common.experiments import store
from common.experiments.catalogue import Catalogue
from common.experiments.names import is_finished
from common.utils import start_experiment
from tests.apps.launching.conftest import Begin, MakeSweep, end_of, until


@pytest.mark.slow
def test_a_trial_is_stored_with_the_tag_of_its_sweep(make_sweep: MakeSweep, begin: Begin) -> None:
    (trial,) = make_sweep({"lr": "0.1"}).trials()
    assert end_of(begin(trial)) == Outcome("finished")
    manifest = Catalogue().manifest("s_000")
    assert manifest["tags"] == ["sweep:s"] and manifest["config"]["lr"] == 0.1
    assert begin(trial) is None, "a finished trial is not repeated"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("misbehave", "kind", "reason"),
    [
        ("error", "failed", "error [training]: the loss is nan"),
        ("nothing", "failed", "it exited successfully, but stored no experiment"),
        ("crash", "died", "exit code 1: RuntimeError: out of luck"),
        ("die", "died", "killed by SIGKILL"),
    ],
)
def test_how_a_trial_ends(
    misbehave: str, kind: str, reason: str, make_sweep: MakeSweep, begin: Begin
) -> None:
    sweep = make_sweep({"misbehave": misbehave})
    (trial,) = sweep.trials()
    assert end_of(begin(trial)) == Outcome(kind, reason)
    (seen_by_others,) = Sweep("s", sweep.folder).trials()
    assert seen_by_others.failed == (reason if kind == "failed" else None)
    if kind == "failed":
        assert begin(trial) is None, "the same error would come again"


def test_an_error_of_an_earlier_attempt_is_not_told_again(
    make_sweep: MakeSweep, begin: Begin
) -> None:
    (trial,) = make_sweep({"misbehave": "crash"}).trials()
    trial.log_path.write_text("error [data]: long ago\n")
    assert end_of(begin(trial)).reason == "exit code 1: RuntimeError: out of luck"


@pytest.mark.slow
def test_what_died_goes_on_from_where_it_was(make_sweep: MakeSweep, begin: Begin) -> None:
    (trial,) = make_sweep({"misbehave": "die_once"}).trials()
    assert end_of(begin(trial)).kind == "died"
    assert end_of(begin(trial)).kind == "finished"
    headers = [line for line in trial.log_path.read_text().splitlines() if line.startswith("---")]
    assert ["--resume" in header for header in headers] == [False, True]
    (summary,) = Catalogue().summaries("loss", "s_000")
    assert summary.num_values == 4, "no step twice"


def test_a_run_that_was_killed_while_it_finished_is_finished(make_sweep: MakeSweep) -> None:
    (trial,) = make_sweep({}).trials()
    run = start_experiment("s_000", system_metrics_seconds=None)
    run.log({"loss": 1.0}, step=1)
    run.update(status="finished", finished=run.manifest["started"], duration=1.0)
    run._lock.release()  # as the system does when the process is killed here
    assert store.log_path("s_000").exists() and not is_finished("s_000")
    assert is_stored(trial.name)


@pytest.mark.slow
def test_only_one_of_two_launchers_runs_a_trial(make_sweep: MakeSweep, begin: Begin) -> None:
    sweep = make_sweep({"step_seconds": "0.2"})
    (trial,), (same,) = sweep.trials(), Sweep("s", sweep.folder).trials()
    attempt = begin(trial)
    assert begin(same) is None
    assert end_of(attempt).kind == "finished"
    assert begin(same) is None


def test_the_lock_outlives_the_launcher_and_ends_with_the_trial(
    make_sweep: MakeSweep, begin: Begin
) -> None:
    (trial,) = make_sweep({"step_seconds": "60"}).trials()
    attempt = begin(trial)
    assert attempt is not None
    os.close(attempt._lock)  # as the system does when the launcher is killed
    assert hold_lock(trial.lock_path) is None and begin(trial) is None
    attempt.kill()
    attempt.process.wait()
    lock = hold_lock(trial.lock_path, timeout_seconds=5)
    assert lock is not None
    os.close(lock)
    attempt._lock = os.open(os.devnull, os.O_RDONLY)  # for poll to close


def test_a_trial_that_is_asked_to_stop_saves(make_sweep: MakeSweep, begin: Begin) -> None:
    (trial,) = make_sweep({"step_seconds": "60"}).trials()
    attempt = begin(trial)
    assert attempt is not None
    until(lambda: Catalogue().summaries("loss"))
    attempt.interrupt(signal.SIGTERM)
    assert end_of(attempt) == Outcome("interrupted")
    assert Catalogue().manifest("s_000")["status"] == "interrupted"
    assert "interrupted, 1 rows are saved" in trial.log_path.read_text()


def test_a_run_that_somebody_continues_by_hand_is_left_alone(
    make_sweep: MakeSweep, begin: Begin
) -> None:
    (trial,) = make_sweep({"misbehave": "die"}).trials()
    assert end_of(begin(trial)).kind == "died"
    with start_experiment("s_000", resume=True, system_metrics_seconds=None):
        assert begin(trial) is None


def test_another_experiment_of_that_name_is_refused_and_the_lock_released(
    make_sweep: MakeSweep, begin: Begin
) -> None:
    (trial,) = make_sweep({}).trials()
    run = start_experiment("s_000", system_metrics_seconds=None)
    run.finish("interrupted")
    with pytest.raises(ExperimentError, match="outside of this sweep"):
        begin(trial)
    lock = hold_lock(trial.lock_path)
    assert lock is not None
    os.close(lock)
