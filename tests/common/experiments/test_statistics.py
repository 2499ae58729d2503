"""Intervals, tests and power, against published figures and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from common.experiments.statistics import (
    compare,
    estimate,
    seeds_for_power,
)
from tools.benchmarks.intervals import correlated, independent, simulate
from tools.benchmarks.medians import median_interval

# Two samples whose Welch test is worked out in many textbooks: t = -2.46, 25 degrees of freedom.
FIRST = [27.5, 21.0, 19.0, 23.6, 17.0, 17.9, 16.9, 20.1, 21.9, 22.6, 23.1, 19.6, 19.0, 21.7, 21.4]
SECOND = [27.1, 22.0, 20.8, 23.4, 23.4, 23.5, 25.8, 22.0, 24.8, 20.2, 21.9, 22.1, 22.9, 20.5, 24.4]


def seeds(values: list[float], start: int = 0) -> dict[int, float]:
    return dict(enumerate(values, start=start))


def test_the_interval_is_students() -> None:
    found = estimate([1, 2, 3, 4, 5])
    assert (found.seeds, found.mean) == (5, 3)
    assert found.half_width == pytest.approx(2.776445 * math.sqrt(2.5) / math.sqrt(5), rel=1e-6)


def test_one_seed_has_no_interval_and_says_nothing() -> None:
    assert estimate([2.5]).half_width is None
    found = compare({0: 1.0}, {0: 2.0})
    assert found.difference == 1.0
    assert found.p_value is found.low is found.test is found.more_seeds is None


def test_welchs_test_gives_the_published_p() -> None:
    found = compare(seeds(FIRST), seeds(SECOND, start=100))
    assert found.test == "Welch" and found.seeds == 30
    assert found.p_value == pytest.approx(0.021, abs=5e-4)
    assert found.difference == pytest.approx(np.mean(SECOND) - np.mean(FIRST))
    # Of unequal numbers as scipy has it.
    found = compare(seeds(FIRST), seeds(SECOND[:6], start=100))
    expected = stats.ttest_ind(SECOND[:6], FIRST, equal_var=False)
    assert found.p_value == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))


def test_the_same_seeds_are_compared_in_pairs() -> None:
    rng = np.random.default_rng(0)
    base = seeds(rng.normal(0, 1, 8).tolist())
    other = {seed: value - 0.2 + float(rng.normal(0, 0.02)) for seed, value in base.items()}
    found = compare(base, dict(reversed(other.items())))
    expected = stats.ttest_rel(list(other.values()), list(base.values()))
    assert (found.test, found.seeds, found.significant) == ("paired t", 8, True)
    assert found.p_value == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))


def test_seeds_that_few_have_in_common_count_once() -> None:
    base, other = seeds([1.0, 2.0, 4.0, 3.0, 5.0]), seeds([2.0, 3.0, 6.0, 7.0], start=4)
    found = compare(base, other)  # seed 4 is of both
    assert (found.test, found.seeds) == ("Welch", 8)
    assert found.difference == pytest.approx(4.5 - 2.5)
    found = compare(base, seeds([2.0, 3.0, 9.0], start=3))  # 3 and 4 are, of three
    assert (found.test, found.seeds, found.difference) == ("paired t", 2, -1.5)


@pytest.mark.parametrize(("effect", "needed"), [(0.2, 394), (0.5, 64), (0.8, 26), (1.0, 17)])
def test_the_seeds_for_80_percent_power_are_those_of_cohens_table(
    effect: float, needed: int
) -> None:
    assert seeds_for_power(effect / math.sqrt(2), lambda n: 2 * n - 2) == needed


def test_the_seeds_that_a_comparison_asks_for_fit_its_test() -> None:
    # G*Power: a paired test of differences of one deviation takes 10 pairs for 80%.
    spread = np.array([-1.0, 0.0, 1.0])
    paired = compare(seeds([5.0, 9.0, 2.0]), seeds((spread + 1 + [5.0, 9.0, 2.0]).tolist()))
    assert paired.test == "paired t" and paired.more_seeds == 10 - 3
    apart = compare(seeds(spread.tolist()), seeds((spread + 1).tolist(), start=10))
    assert apart.test == "Welch" and apart.more_seeds == 17 - 3
    rng = np.random.default_rng(0)
    reached = stats.ttest_1samp(rng.normal(1, 1, (4000, 10)), 0, axis=1).pvalue < 0.05
    assert reached.mean() == pytest.approx(0.8, abs=0.025)


def test_what_no_number_of_seeds_can_tell_apart() -> None:
    assert compare(seeds([1, 2, 3]), seeds([3, 2, 1], start=9)).more_seeds is None
    assert compare(seeds([0, 1000]), seeds([0.001, 1000.001], start=9)).more_seeds is None


@pytest.mark.parametrize("start", [0, 10])
def test_seeds_that_make_no_difference_are_not_tested(start: int) -> None:
    # 0.1 + 0.2 is not 0.3 in floats: rounding is no spread either.
    found = compare({0: 0.1 + 0.2, 1: 0.3}, {start: 2.0, start + 1: 2.0})
    assert found.test is not None and found.p_value is found.low is found.more_seeds is None


def test_the_same_difference_of_every_seed_needs_no_test() -> None:
    found = compare({0: 0.1, 1: 0.3}, {0: 0.3, 1: 0.5})
    assert (found.p_value, found.more_seeds) == (0.0, 0) and found.low == pytest.approx(0.2)
    found = compare({0: 0.1 + 0.2, 1: 1.0}, {0: 0.3, 1: 1.0})
    assert (found.p_value, found.more_seeds) == (1.0, None)


def test_fewer_than_six_values_have_no_interval_of_their_median() -> None:
    assert median_interval([1.0, 2.0, 3.0, 4.0, 5.0]) is None
    interval = median_interval([3.0, 1.0, 2.0, 6.0, 5.0, 4.0])
    assert interval is not None and interval == pytest.approx((19 / 14, 79 / 14))


@pytest.mark.parametrize("count", [3, 5, 10])
@pytest.mark.parametrize("draw", [independent, correlated(0.9)])
def test_intervals_cover_what_they_say_and_tests_reject_what_they_may(
    draw: object, count: int
) -> None:
    found = simulate(draw, count, comparisons=4000, by_pairs=draw is not independent)
    assert 0.93 <= found.mean <= 0.97 and 0.93 <= found.difference <= 0.97
    assert 0.04 <= found.false_alarms <= 0.06
    assert found.median is None if count < 6 else 0.93 <= found.median <= 0.97
