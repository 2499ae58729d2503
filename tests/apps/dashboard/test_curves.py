"""Arithmetic on curves: against definitions, and with what a real run does to them."""

from __future__ import annotations

import numpy as np
import pytest

from apps.dashboard.curves import band, find_trouble, reduce, smooth
from common.experiments.statistics import estimate

nan, inf = np.nan, np.inf


def test_smoothing_is_the_average_with_its_start_corrected() -> None:
    values = np.random.default_rng(0).normal(size=50)
    weight = 0.9
    weights = weight ** np.arange(50)
    expected = [
        (values[: n + 1][::-1] * weights[: n + 1]).sum() / weights[: n + 1].sum() for n in range(50)
    ]
    np.testing.assert_allclose(smooth(values, weight), expected, rtol=1e-12)
    assert smooth(values, 0.0) is values


def test_what_is_no_number_does_not_enter_the_average() -> None:
    smoothed = smooth(np.array([1.0, nan, 3.0, inf, 2.0]), 0.5)
    np.testing.assert_allclose(smoothed[[0, 2, 4]], smooth(np.array([1.0, 3.0, 2.0]), 0.5))
    assert np.isnan(smoothed[1]) and np.isinf(smoothed[3])


@pytest.mark.parametrize("log_x", [False, True])
def test_a_reduced_curve_keeps_the_extremes_of_every_pixel_column(log_x: bool) -> None:
    x = np.arange(1.0, 100_001.0)
    y = np.random.default_rng(0).normal(size=len(x))
    y[77_777] = 50.0
    kept = reduce(x, y, 1000, log_x=log_x)
    assert len(kept) <= 1000 and (np.diff(kept) > 0).all()
    assert {0, 77_777, len(x) - 1} <= set(kept)
    position = np.log10(x) if log_x else x
    columns = ((position - position[0]) / (position[-1] - position[0]) * 499).clip(max=498)
    chosen = set(kept)
    for column in (0, 250, 498):
        inside = np.flatnonzero(columns.astype(int) == column)
        if len(inside):
            assert inside[y[inside].argmin()] in chosen and inside[y[inside].argmax()] in chosen


def test_a_reduced_curve_keeps_its_gaps() -> None:
    x, y = np.arange(100_000.0), np.ones(100_000)
    y[40_000] = nan
    y[90_000:] = inf
    kept = reduce(x, y, 1000)
    assert len(kept) <= 1000
    assert 40_000 in kept and not np.isfinite(y[kept[kept >= 90_000]]).any()


def test_a_short_curve_is_left_alone() -> None:
    assert reduce(np.arange(5.0), np.arange(5.0), 5).tolist() == [0, 1, 2, 3, 4]
    assert reduce(np.array([]), np.array([]), 5).tolist() == []


def test_a_curve_at_one_place_is_reduced_too() -> None:
    kept = reduce(np.full(5000, 7.0), np.arange(5000.0), 100)
    assert kept.tolist() == [0, 4999]


def test_a_band_is_the_t_interval_at_every_step() -> None:
    x = np.arange(0.0, 50, 10)
    curves = [(x, np.random.default_rng(seed).normal(size=5)) for seed in range(4)]
    result = band(curves, 1000)
    for index, step in enumerate(x):
        expected = estimate([y[index] for _, y in curves])
        assert result.x[index] == step and result.n[index] == 4
        assert result.mean[index] == pytest.approx(expected.mean)
        assert result.high[index] - result.mean[index] == pytest.approx(expected.half_width)
        assert result.mean[index] - result.low[index] == pytest.approx(expected.half_width)


def test_the_runs_of_a_seed_are_one_line_of_a_band() -> None:
    x = np.array([0.0, 10.0])
    curves = [(x, np.array(y)) for y in ([1.0, nan], [3.0, 4.0], [5.0, 6.0], [6.0, 8.0])]
    result = band(curves, 1000, seeds=[0, 0, 1, None])
    assert result.n.tolist() == [3, 3] and result.mean.tolist() == [13 / 3, 6.0]
    assert result.high[0] - result.mean[0] == pytest.approx(estimate([2, 5, 6]).half_width)


def test_a_run_counts_in_a_band_only_where_it_has_values() -> None:
    long = (np.array([0.0, 10, 20, 30]), np.array([4.0, 3, 2, 1]))
    diverged = (np.array([0.0, 10, 20, 30]), np.array([6.0, 5, nan, inf]))
    coarse = (np.array([0.0, 20]), np.array([2.0, 0.0]))
    result = band([long, diverged, coarse], 1000)
    assert result.n.tolist() == [3, 3, 2, 1]
    np.testing.assert_allclose(result.mean, [4, 3, 1, 1])  # `coarse` is 1 at 10: between its points
    assert np.isnan(result.low[3]) and np.isfinite(result.low[2])


@pytest.mark.parametrize("log_x", [False, True])
def test_a_band_of_long_curves_has_a_mean_per_pixel_column(log_x: bool) -> None:
    x = np.arange(1.0, 20_001)
    curves = [(x, x + offset) for offset in (-1.0, 0.0, 1.0)]
    result = band(curves, 100, log_x=log_x)
    assert 50 <= len(result.x) <= 100 and (result.n == 3).all()
    width = np.diff(result.x).max() + 1
    assert (np.abs(result.mean - result.x) <= width).all()
    np.testing.assert_allclose(result.high - result.mean, 2.4841377, rtol=1e-6)


def test_runs_without_any_number_make_an_empty_band() -> None:
    nothing = (np.array([0.0, 1.0]), np.array([nan, nan]))
    assert len(band([nothing, nothing], 100).x) == 0


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([3, 2, 1], None),
        ([3, nan, 1], (1, 10, False)),
        ([3, nan, 2, nan, inf], (3, 30, True)),
        ([nan, nan], (2, 0, True)),
    ],
)
def test_trouble_is_told_with_the_step_where_it_matters(
    values: list[float], told: tuple[int, int, bool] | None
) -> None:
    steps = np.arange(0.0, 10 * len(values), 10)
    series = np.array(values, dtype=float)
    shuffled = np.random.default_rng(0).permutation(len(values))  # rows of any order of steps
    assert find_trouble(steps, series) == told == find_trouble(steps[shuffled], series[shuffled])
