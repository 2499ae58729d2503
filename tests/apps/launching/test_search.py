"""Where trials come from: the grid, and Optuna with a memory that survives its launcher."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from apps.launching.attempt import is_stored
from apps.launching.report import ranking
from apps.launching.search import Goal, GridSearch, OptunaSearch, summaries_of
from apps.launching.space import grid, parse_space
from apps.launching.sweep import Definition, Sweep, Trial, open_sweep
from common.errors import ConfigError, ExperimentError
from common.utils import save_experiment, start_experiment
from common.utils.paths import REPOSITORY_ROOT

pytest.importorskip("optuna")
SPACE = ["lr=loguniform(1e-4,1e-1)", "layers=choice(2,4)", "width=range(8,33,8)", "steps=5"]


def new_sweep(name: str = "s") -> Sweep:
    return open_sweep(name, Definition("x.py", {}, {"kind": "optuna"}, None, {}))


def new_search(sweep: Sweep, total: int = 20, seed: int = 0, **goal: Any) -> OptunaSearch:
    return OptunaSearch(sweep, parse_space(SPACE), total, Goal(**goal), seed)


def loss_of(trial: Trial) -> float:
    """Lowest at lr 1e-2, layers 4, width 8."""
    distance = abs(math.log10(float(trial.values["lr"])) + 2)
    return distance + int(trial.values["width"]) / 8 + 4 / int(trial.values["layers"])


def finish(trial: Trial, *losses: float) -> None:
    trial.started = "2026-01-01T00:00:00+00:00"
    trial.save()
    with start_experiment(trial.name, system_metrics_seconds=None) as run:
        for step, loss in enumerate(losses or [loss_of(trial)]):
            run.log({"loss": loss}, step=step, split="val")


def states(search: OptunaSearch) -> list[str]:
    return [trial.state.name for trial in search._study.get_trials()]


def test_a_grid_is_there_from_the_start_and_only_once() -> None:
    sweep = new_sweep()
    trials = dict(enumerate(grid(parse_space(["lr=1,2", "seed=range(2)"]))))
    for _ in range(2):
        search = GridSearch(sweep, trials)
        assert search.total == 4 and search.ask() is None
    assert [t.describe() for t in sweep.trials()] == [
        "lr=1 seed=0",
        "lr=1 seed=1",
        "lr=2 seed=0",
        "lr=2 seed=1",
    ]


def test_draws_are_within_their_bounds_and_end_at_the_budget() -> None:
    search = new_search(new_sweep(), total=5)
    trials = [search.ask() for _ in range(6)]
    assert trials.pop() is None
    for trial in trials:
        assert trial is not None
        assert list(trial.values) == ["lr", "layers", "width"]
        assert 1e-4 <= float(trial.values["lr"]) <= 1e-1
        assert trial.values["layers"] in ("2", "4")
        assert trial.values["width"] in ("8", "16", "24", "32")
    assert len({str(trial.values) for trial in trials if trial}) == 5


@pytest.mark.slow
def test_a_search_that_was_stopped_draws_what_it_would_have_drawn() -> None:
    whole, parts, other = new_sweep("whole"), new_sweep("parts"), new_sweep("other")
    uninterrupted = new_search(whole)
    for _ in range(14):
        trial = uninterrupted.ask()
        assert trial is not None
        finish(trial)
        part = new_search(Sweep("parts", parts.folder)).ask()  # every draw by a launcher of its own
        assert part is not None
        finish(part)
    assert [t.values for t in whole.trials()] == [t.values for t in parts.trials()]
    seeded = new_search(other, seed=1).ask()
    assert seeded is not None and seeded.values != whole.trials()[0].values


@pytest.mark.slow
def test_the_search_learns() -> None:
    sweep = new_sweep()
    search = new_search(sweep, total=40)
    while (trial := search.ask()) is not None:
        finish(trial)
    losses = [loss_of(trial) for trial in sweep.trials()]
    assert sum(losses[-15:]) / 15 < 0.75 * sum(losses[:10]) / 10  # the first ten are at random
    search.close()
    assert search._study.best_value == min(losses)


def test_maximizing_goes_the_other_way() -> None:
    search = new_search(new_sweep(), direction="max")
    for _ in range(3):
        trial = search.ask()
        assert trial is not None
        finish(trial, 1.0, 9.0 + trial.number, 2.0)
    search.close()
    assert search._study.best_value == 11.0, "the best value of a trial counts, as for --best"


def test_failed_and_diverged_trials_are_held_for_the_worst() -> None:
    sweep = new_sweep()
    search = new_search(sweep)
    diverged, failed, running = (search.ask() for _ in range(3))
    assert diverged and failed and running
    finish(diverged, 0.1, math.nan)
    failed.failed = "error [training]: the loss is nan"
    failed.save()
    search.close()
    assert states(search) == ["PRUNED", "PRUNED", "RUNNING"]


def test_a_trial_that_finishes_at_this_moment_counts_with_all_its_values(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    search = new_search(new_sweep())
    trial = search.ask()
    assert trial is not None

    def finishes_now(name: str) -> bool:
        finish(trial, 3.0, 1.5)
        return is_stored(name)

    monkeypatch.setattr("apps.launching.search.is_stored", finishes_now)
    search.close()
    assert search._study.best_value == 1.5


def test_a_draw_that_was_never_written_down_is_forgotten_and_made_up_for() -> None:
    sweep = new_sweep()
    search = new_search(sweep, total=2)
    search._study.ask(search._distributions)  # killed here
    again = new_search(Sweep("s", sweep.folder), total=2)
    trials = [again.ask() for _ in range(3)]
    assert [trial.name if trial else None for trial in trials] == ["s_001", "s_002", None]
    assert states(again) == ["FAIL", "RUNNING", "RUNNING"]


def test_a_lost_journal_is_told_and_no_trial_overwritten() -> None:
    sweep = new_sweep()
    first = new_search(sweep).ask()
    assert first is not None
    (sweep.folder / "optuna.journal").unlink()
    with pytest.raises(ExperimentError, match="trial 0 of 's', which already exists") as error:
        new_search(Sweep("s", sweep.folder), seed=1).ask()
    assert "optuna.journal" in error.value.hint
    assert Sweep("s", sweep.folder).trials()[0].values == first.values


def test_a_metric_that_no_trial_logs_is_one_clear_error() -> None:
    search = new_search(new_sweep(), metric="accuracy", direction="max")
    trial = search.ask()
    assert trial is not None
    finish(trial)
    with pytest.raises(ConfigError, match="'s_000' has logged no 'accuracy'") as error:
        search.ask()
    assert error.value.hint == "choose from: loss"


@pytest.mark.slow
def test_launchers_that_ask_at_once_stay_within_the_budget(assets_dir: Path) -> None:
    sweep = new_sweep()
    code = f"""
from tests.apps.launching.test_search import new_search
from apps.launching.sweep import Sweep
from pathlib import Path
search = new_search(Sweep("s", Path({str(sweep.folder)!r})), total=10)
count = 0
while search.ask() is not None:
    count += 1
print(count)
"""
    command = [sys.executable, "-c", code]
    processes = [
        subprocess.Popen(command, cwd=REPOSITORY_ROOT, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        counts = [int(process.communicate(timeout=120)[0]) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert sum(counts) == 10 == len(sweep.trials())
    assert len({str(trial.values) for trial in sweep.trials()}) == 10


def test_trials_are_judged_on_one_split_whatever_others_log() -> None:
    import pandas as pd

    save_experiment("other", pd.DataFrame({"loss": [0.0], "split": ["test"]}))
    save_experiment("s_000", pd.DataFrame({"loss": [2.0, 1.0], "split": ["train", "val"]}))
    save_experiment("s_001", pd.DataFrame({"loss": [0.5, 3.0], "split": ["train", "val"]}))
    summaries = summaries_of("loss", ["s_000", "s_001", "s_002"])
    assert {name: s.minimum for name, s in summaries.items()} == {"s_000": 1.0, "s_001": 3.0}
    assert summaries_of("nothing", ["s_000"]) == {}


def test_a_trial_without_a_full_evaluation_ranks_last_and_is_no_result() -> None:
    sweep = new_sweep()
    for number, losses in enumerate([{"val_quick": 1.0, "val": 3.0}, {"val_quick": 0.5}, {}]):
        trial = sweep.plan_trial(number, {"lr": str(number)})
        with start_experiment(trial.name, system_metrics_seconds=None) as run:
            for split, loss in losses.items():
                run.log({"loss": loss}, step=1, split=split)
    trials = sweep.trials()
    rows = ranking(trials, Goal()).rows
    assert [row[1:5] for row in rows] == [
        ["s_000", 3.0, 1, "val"],
        ["s_001", 0.5, 1, "val_quick"],
        ["s_002", None, None, None],
    ]
    assert list(summaries_of("loss", [trial.name for trial in trials])) == ["s_000"]
    rows = ranking(trials[1:], Goal()).rows
    assert rows[0][1:5] == ["s_001", 0.5, 1, "val_quick"]
