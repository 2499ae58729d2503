"""Intervals, tests and power, against published figures and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from common.utils.experiment_storage.statistics import compare, estimate, runs_for_power

# Two samples whose Welch test is worked out in many textbooks: t = -2.46, 25 degrees of freedom.
FIRST = [27.5, 21.0, 19.0, 23.6, 17.0, 17.9, 16.9, 20.1, 21.9, 22.6, 23.1, 19.6, 19.0, 21.7, 21.4]
SECOND = [27.1, 22.0, 20.8, 23.4, 23.4, 23.5, 25.8, 22.0, 24.8, 20.2, 21.9, 22.1, 22.9, 20.5, 24.4]


def seeds(values: list[float], start: int = 0) -> dict[int, float]:
    return dict(enumerate(values, start=start))


def test_the_interval_is_students() -> None:
    found = estimate([1, 2, 3, 4, 5])
    assert (found.runs, found.mean) == (5, 3)
    assert found.half_width == pytest.approx(2.776445 * math.sqrt(2.5) / math.sqrt(5), rel=1e-6)


def test_one_run_has_no_interval_and_tells_nothing() -> None:
    assert estimate([2.5]).half_width is None
    found = compare({0: 1.0}, {0: 2.0})
    assert found.difference == 1.0
    assert found.p_value is found.bootstrap_low is found.more_runs is None


def test_welchs_test_gives_the_published_p() -> None:
    found = compare(seeds(FIRST), seeds(SECOND, start=100))
    assert found.p_value == pytest.approx(0.021, abs=5e-4)
    assert found.difference == pytest.approx(np.mean(SECOND) - np.mean(FIRST))
    assert found.bootstrap_low is None, "no seed is in both"


def test_seeds_that_move_both_alike_are_taken_out_by_pairing() -> None:
    rng = np.random.default_rng(0)
    luck = rng.normal(0, 1, 8)
    base = seeds([float(x) for x in luck])
    other = {seed: value - 0.2 + float(rng.normal(0, 0.02)) for seed, value in base.items()}
    found = compare(base, other)
    assert found.p_value is not None and found.p_value > 0.3
    assert found.bootstrap_low is not None and found.bootstrap_high is not None
    assert -0.25 < found.bootstrap_low < -0.2 + 0.02 and found.bootstrap_high < -0.15
    assert compare(base, other) == found, "the resampling is seeded"


@pytest.mark.parametrize(("effect", "runs"), [(0.2, 394), (0.5, 64), (0.8, 26), (1.0, 17)])
def test_the_runs_for_80_percent_power_are_those_of_cohens_table(effect: float, runs: int) -> None:
    half = 1 / math.sqrt(2)  # two values at +-half have the deviation 1
    assert runs_for_power([-half, half], [effect - half, effect + half]) == runs


def test_with_so_many_runs_four_of_five_experiments_find_the_difference() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(0, 1, (17, 4000)), rng.normal(1, 1, (17, 4000))
    found = stats.ttest_ind(first, second, equal_var=False).pvalue < 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.025)


def test_what_no_number_of_runs_can_tell_apart() -> None:
    assert runs_for_power([1, 2, 3], [1, 2, 3]) is None
    assert runs_for_power([0, 1000], [0.001, 1000.001]) is None
    same = compare({0: 1.0, 1: 1.0}, {0: 2.0, 1: 2.0})
    assert (same.p_value, same.more_runs) == (None, 0), "no spread: no test, and none is needed"
