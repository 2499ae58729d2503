"""Runs of a reproduction are done once, whoever asks, and go on where they were cut off."""

from __future__ import annotations

import pytest

from apps.reproduction.runs import PaperRun, Results, run_all, run_once
from common.errors import ExperimentError
from common.experiments.run import Run
from common.utils import query_experiments, start_experiment

CONFIG = {"rate": 0.5, "steps": 3}


def doubling(planned: PaperRun, run: Run) -> None:
    """Three rows and a result that tells how many rows were there already."""
    found = run.rows
    if found:
        run.resume_from(0)
    for step in range(planned.config["steps"]):
        run.log({"loss": planned.config["rate"] ** step}, step=step)
    run.log({"answer": 2 * planned.seed, "rows_before": found}, step=3, split="result")


def broken(planned: PaperRun, run: Run) -> None:
    run.log({"loss": 1.0}, step=0)
    raise ZeroDivisionError


def never(planned: PaperRun, run: Run) -> None:
    raise AssertionError("it was done already")


def test_a_finished_run_is_read_from_the_store() -> None:
    planned = PaperRun("paper", "variant", CONFIG, 4)
    first = run_once(planned, doubling)
    assert first == {"answer": 8, "rows_before": 0}
    assert run_once(planned, never) == first
    runs = query_experiments("SELECT name, project, seed, tags FROM runs")
    assert runs["name"].tolist() == [planned.name]
    assert (runs["project"][0], runs["seed"][0]) == ("paper", 4)


@pytest.mark.parametrize("changed", [{"rate": 0.25}, {"steps": 2}, {"more": None}])
def test_another_configuration_is_another_run(changed: dict[str, object]) -> None:
    one, other = (PaperRun("paper", "v", config, 0) for config in (CONFIG, CONFIG | changed))
    run_once(one, doubling)
    with pytest.raises(AssertionError):
        run_once(other, never)


def test_the_order_of_the_keys_does_not_count() -> None:
    reordered = dict(reversed(CONFIG.items()))
    assert PaperRun("p", "v", CONFIG, 0).name == PaperRun("p", "v", reordered, 0).name


def test_a_run_that_failed_is_taken_up_with_its_rows() -> None:
    planned = PaperRun("paper", "variant", CONFIG, 1)
    with pytest.raises(ZeroDivisionError):
        run_once(planned, broken)
    assert run_once(planned, doubling) == {"answer": 2, "rows_before": 1}
    rows = query_experiments("SELECT step FROM experiments WHERE split = 'train'")
    assert sorted(rows["step"]) == [0, 1, 2]


def test_a_stored_experiment_without_a_result_is_an_error() -> None:
    planned = PaperRun("paper", "variant", CONFIG, 0)
    with start_experiment(planned.name) as run:
        run.log({"loss": 1.0}, step=0)
    with pytest.raises(ExperimentError, match="without a result"):
        run_once(planned, never)


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_all_runs_come_back_in_their_order(jobs: int) -> None:
    runs = [PaperRun("paper", variant, CONFIG, seed) for variant in "ab" for seed in (0, 1)]
    heard: list[str] = []

    def hear(planned: PaperRun, results: Results) -> None:
        heard.append(planned.name)

    results = run_all(runs, doubling, jobs, hear)
    assert list(results) == [run.name for run in runs]
    assert [found["answer"] for found in results.values()] == [0, 2, 0, 2]
    assert sorted(heard) == sorted(results)


@pytest.mark.slow
def test_an_error_in_a_worker_comes_through() -> None:
    runs = [PaperRun("paper", "variant", CONFIG, seed) for seed in (0, 1)]
    with pytest.raises(ZeroDivisionError):
        run_all(runs, broken, jobs=2)
