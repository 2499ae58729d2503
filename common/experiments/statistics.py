"""Significance of differences between configurations over seeds.

All intervals and tests of means are Student's: exact for normally distributed values with any
number of seeds, where a percentile bootstrap of 2, 3, 5 and 10 seeds covers 48, 75, 84 and 89%
instead of 95%. For few seeds with a skewed distribution no method reaches its nominal coverage;
tools/benchmarks/intervals.py measures the shortfall, and the other claims here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

# A number, or the name of a run without a recorded seed.
Seed = TypeVar("Seed", bound=int | str)
_ALPHA = 0.05
_MOST_SEEDS = 10_000  # a difference that needs more is negligible
_ROUNDING = 1e-12  # relative; values that differ by less have no spread


@dataclass(frozen=True)
class Estimate:
    """The mean over seeds and its 95% confidence interval, mean +- half_width (None for one seed)."""

    seeds: int
    mean: float
    half_width: float | None


class _Student(NamedTuple):
    """A t test of a mean difference. `freedom` gives its degrees of freedom for n seeds per group,
    for which the standard error would be deviation / sqrt(n)."""

    name: str
    difference: float
    error: float  # the standard error
    degrees: float
    deviation: float
    freedom: Callable[[int], float]


@dataclass(frozen=True)
class Comparison:
    """`difference` is other - base; low and high bound its 95% interval; `seeds` is the number of
    pairs, or of seeds in both groups.

    `test` is None with too few seeds; the p-value is None if the seeds have no spread, so that more
    seeds add no information.
    """

    difference: float
    low: float | None
    high: float | None
    p_value: float | None
    test: str | None  # "paired t" or "Welch"
    seeds: int
    _fewest: int
    _student: _Student | None

    @property
    def significant(self) -> bool:
        """Whether the p-value is below 5%."""
        return self.p_value is not None and self.p_value < _ALPHA

    @property
    def more_seeds(self) -> int | None:
        """Seeds needed per group, see `seeds_for_power`."""
        if self._student is None:  # no test, or none needed
            return 0 if self.significant else None
        effect = self._student.difference / self._student.deviation
        needed = seeds_for_power(effect, self._student.freedom)
        return None if needed is None else max(0, needed - self._fewest)


def half_width(variance: ArrayLike, seeds: ArrayLike) -> NDArray[np.float64]:
    """Half width of the 95% interval of a mean, t(0.975, n - 1) * s / sqrt(n) (Student 1908), elementwise.

    Args:
        variance: s^2, with n - 1 in its denominator.
        seeds: n, at least 2.
    """
    n = np.asarray(seeds, dtype=np.float64)
    quantile = special.stdtrit(n - 1, 1 - _ALPHA / 2)
    return np.asarray(quantile * np.sqrt(np.asarray(variance) / n), dtype=np.float64)


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of one value per seed, with `half_width`."""
    array = np.asarray(values, dtype=np.float64)
    if len(array) < 2:
        return Estimate(len(array), float(array.mean()), None)
    half = half_width(array.var(ddof=1), len(array))
    return Estimate(len(array), float(array.mean()), float(half))


def compare(base: Mapping[Seed, float], other: Mapping[Seed, float]) -> Comparison:
    """Compare {seed: value} of two configurations by a two-sided t test and its 95% interval.

    Common seeds are compared in pairs, which removes the effect of a seed on both. If fewer than
    half of the seeds of the smaller group are common, the groups are compared as independent
    (Welch), and a common seed counts only in the smaller group. The choice depends only on the
    seeds, never on the values.
    """
    shared = [seed for seed in base if seed in other]
    if len(shared) >= 2 and 2 * len(shared) >= min(len(base), len(other)):
        first, second = ([group[seed] for seed in shared] for group in (base, other))
        return _compared(_paired(np.array(first), np.array(second)), first, second, len(shared))
    larger = base if len(base) > len(other) else other
    first, second = (
        [value for seed, value in group.items() if group is not larger or seed not in shared]
        for group in (base, other)
    )
    total = len(first) + len(second)
    if min(len(first), len(second)) < 2:
        difference = float(np.mean([*other.values()]) - np.mean([*base.values()]))
        return Comparison(difference, None, None, None, None, total, 0, None)
    return _compared(_welch(np.array(first), np.array(second)), first, second, total)


def _paired(first: NDArray[np.float64], second: NDArray[np.float64]) -> _Student:
    differences = second - first
    pairs = len(differences)
    deviation = float(differences.std(ddof=1))
    mean, error = float(differences.mean()), deviation / math.sqrt(pairs)
    return _Student("paired t", mean, error, pairs - 1, deviation, lambda n: n - 1)


def _welch(first: NDArray[np.float64], second: NDArray[np.float64]) -> _Student:
    """Compare two independent groups with unequal variances."""
    a, b = float(first.var(ddof=1)), float(second.var(ddof=1))
    n, m = len(first), len(second)
    return _Student(
        "Welch",
        float(second.mean() - first.mean()),
        math.sqrt(a / n + b / m),
        _welch_freedom(a, n, b, m) if a + b else math.inf,
        math.sqrt(a + b),
        lambda seeds: _welch_freedom(a, seeds, b, seeds),
    )


def _welch_freedom(a: float, n: int, b: float, m: int) -> float:
    """Degrees of freedom for variances `a` of `n` seeds and `b` of `m`.

    For equal numbers those of Welch (1947): with three seeds each, 5.1% of tests reject a true null
    hypothesis, against 3.5% for the common Satterthwaite (1946). For unequal numbers
    Satterthwaite's, since Welch's reject too often.
    """
    k = 1 if n == m else -1
    a, b = a / n, b / m
    return (a + b) ** 2 / (a**2 / (n + k) + b**2 / (m + k)) - (1 + k)


def _compared(
    student: _Student, first: Sequence[float], second: Sequence[float], seeds: int
) -> Comparison:
    name, difference, error, degrees, *_ = student
    rounding = _ROUNDING * max(map(abs, (*first, *second)))
    fewest = min(len(first), len(second))
    if max(np.ptp(first), np.ptp(second)) <= rounding:
        return Comparison(difference, None, None, None, name, seeds, fewest, None)
    if error <= rounding:  # every seed has the same difference: the limit of the test
        p_value = 0.0 if abs(difference) > rounding else 1.0
        return Comparison(difference, difference, difference, p_value, name, seeds, fewest, None)
    half = float(special.stdtrit(degrees, 1 - _ALPHA / 2)) * error
    p_value = float(2 * special.stdtr(degrees, -abs(difference) / error))
    low, high = difference - half, difference + half
    return Comparison(difference, low, high, p_value, name, seeds, fewest, student)


def seeds_for_power(
    effect: float, freedom: Callable[[int], float], power: float = 0.8
) -> int | None:
    """Seeds per group for a two-sided t test at 5% to detect a difference with this power.

    `effect` is the difference divided by the deviation (standard error = deviation / sqrt(n));
    `freedom` the degrees of freedom for n seeds per group. Uses the noncentral t distribution
    (Cohen 1988, "Statistical Power Analysis", chapter 2). None if more than 10,000 are needed.
    """
    if effect == 0:
        return None

    def suffices(seeds: int) -> bool:
        degrees = freedom(seeds)
        critical = stats.t.ppf(1 - _ALPHA / 2, degrees)
        # The far tail is negligible for a power near 0.8.
        return bool(stats.nct.sf(critical, degrees, abs(effect) * math.sqrt(seeds)) >= power)

    low, high = 2, 2
    while not suffices(high):
        low, high = high, high * 2
        if high > 2 * _MOST_SEEDS:
            return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if suffices(middle) else (middle + 1, high)
    return low if low <= _MOST_SEEDS else None
