"""Is the difference between two configurations more than the luck of their seeds?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

_BOOTSTRAP_SAMPLES = 9999
_MOST_RUNS = 10_000  # a difference that needs more than this is no difference


@dataclass(frozen=True)
class Estimate:
    """The mean over runs and its 95% confidence interval, mean +- half_width (None for one run)."""

    runs: int
    mean: float
    half_width: float | None


@dataclass(frozen=True)
class Comparison:
    """`difference` is mean(other) - mean(base); None stands for what so few runs cannot tell."""

    difference: float
    p_value: float | None
    bootstrap_low: float | None
    bootstrap_high: float | None
    more_runs: int | None  # that each group needs, see `runs_for_power`


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and half_width = t(0.975, n - 1) * s / sqrt(n) (Student 1908)."""
    array = np.asarray(values, dtype=np.float64)
    if len(array) < 2:
        return Estimate(len(array), float(array.mean()), None)
    quantile = float(stats.t.ppf(0.975, len(array) - 1))
    return Estimate(len(array), float(array.mean()), quantile * float(stats.sem(array)))


def compare(base: Mapping[int, float], other: Mapping[int, float]) -> Comparison:
    """Compare {seed: value} of two configurations.

    p_value: Welch's t test, two-sided (Welch 1947); it does not assume equal variances.
    bootstrap: 95% percentile interval of the mean difference over the seeds that both have (Efron
    1979), which takes out what a seed does to both alike. The resampling itself is seeded.
    """
    first, second = list(base.values()), list(other.values())
    difference = float(np.mean(second) - np.mean(first))
    p_value = None
    if min(len(first), len(second)) > 1 and len({*first}) + len({*second}) > 2:
        p_value = float(stats.ttest_ind(second, first, equal_var=False).pvalue)
    low, high = _paired_bootstrap([other[seed] - base[seed] for seed in base if seed in other])
    needed = runs_for_power(first, second)
    more = None if needed is None else max(0, needed - min(len(first), len(second)))
    return Comparison(difference, p_value, low, high, more)


def _paired_bootstrap(differences: Sequence[float]) -> tuple[float | None, float | None]:
    if len(differences) < 2:
        return None, None
    rng = np.random.default_rng(0)
    drawn = rng.choice(np.asarray(differences), (_BOOTSTRAP_SAMPLES, len(differences)))
    low, high = np.quantile(drawn.mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def runs_for_power(
    first: Sequence[float], second: Sequence[float], power: float = 0.8, alpha: float = 0.05
) -> int | None:
    """Runs per group with which a two-sided t test would find this difference with this power.

    From the effect size d = |difference| / pooled deviation, by the noncentral t distribution
    (Cohen 1988, "Statistical Power Analysis", chapter 2). None when a group has one run, when the
    groups do not differ, or when more than 10,000 would be needed.
    """
    if min(len(first), len(second)) < 2:
        return None
    deviation = math.sqrt((np.var(first, ddof=1) + np.var(second, ddof=1)) / 2)
    difference = abs(float(np.mean(second) - np.mean(first)))
    if difference == 0:
        return None
    if deviation == 0:
        return 2

    def suffices(runs: int) -> bool:
        freedom = 2 * runs - 2
        shift = difference / deviation * math.sqrt(runs / 2)
        critical = stats.t.ppf(1 - alpha / 2, freedom)
        # The far tail is too small to matter where the power is near 0.8.
        return bool(stats.nct.sf(critical, freedom, shift) >= power)

    low, high = 2, 2
    while not suffices(high):
        low, high = high, high * 2
        if high > 2 * _MOST_RUNS:
            return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if suffices(middle) else (middle + 1, high)
    return low if low <= _MOST_RUNS else None
