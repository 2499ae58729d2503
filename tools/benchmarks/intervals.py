"""Measure the coverage of intervals over seeds, and the false positive rate of tests.

Draws comparisons of two equal configurations, and passes them to the functions of
`query_experiments.py --compare --group`. Nominal coverage is 95%, nominal rejection 5%.

  python tools/benchmarks/intervals.py
  python tools/benchmarks/intervals.py --comparisons 40000 --format markdown
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.errors import exit_on_error
from common.experiments.statistics import compare, estimate
from common.utils.arguments import positive_int
from common.utils.tables import FORMATS, format_rows
from tools.benchmarks.medians import median_interval

SEEDS = (2, 3, 5, 10)
Draw = Callable[[np.random.Generator, tuple[int, int]], NDArray[np.float64]]


class Shares(NamedTuple):
    """For all comparisons: whether the intervals of the mean, the median (None: not available) and
    the difference cover the truth, and whether the test rejects."""

    mean: float
    median: float | None
    difference: float
    false_alarms: float


def independent(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Values of (configurations, seeds), normally distributed."""
    return rng.standard_normal(shape)


def correlated(correlation: float) -> Draw:
    """Normally distributed; values of the same seed have this correlation."""

    def draw(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float64]:
        seed, own = rng.standard_normal((1, shape[1])), rng.standard_normal(shape)
        values: NDArray[np.float64] = correlation**0.5 * seed + (1 - correlation) ** 0.5 * own
        return values

    return draw


def unequal(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Normally distributed; the second configuration varies twice as much."""
    values = rng.standard_normal(shape)
    values[1] *= 2
    return values


def skewed(base: Draw) -> Draw:
    """Exponentials of draws from `base` (lognormal, skewness 6.2), minus their mean."""

    def draw(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float64]:
        values: NDArray[np.float64] = np.exp(base(rng, shape)) - math.exp(0.5)
        return values

    return draw


CASES: dict[str, tuple[Draw, bool]] = {  # by the name of the case: (draw, the same seeds)
    "normal": (independent, False),
    "normal, deviations 1 and 2": (unequal, False),
    "normal, same seeds, correlation 0": (independent, True),
    "normal, same seeds, correlation 0.9": (correlated(0.9), True),
    "lognormal": (skewed(independent), False),
    "lognormal, same seeds, correlation 0.9": (skewed(correlated(0.9)), True),
}


def simulate(draw: Draw, seeds: int, comparisons: int, *, by_pairs: bool) -> Shares:
    """Simulate `comparisons` of two configurations with `seeds` each; equal seeds if `by_pairs`."""
    rng = np.random.default_rng(seeds)
    centre = float(np.median(draw(np.random.default_rng(0), (2, 100_001))[0]))
    means = medians = differences = alarms = 0
    for _ in range(comparisons):
        first, second = draw(rng, (2, seeds)).tolist()
        mean = estimate(first)
        means += abs(mean.mean) <= (mean.half_width or 0.0)
        low, high = median_interval(first) or (0.0, 0.0)
        medians += low <= centre <= high
        shift = 0 if by_pairs else seeds
        found = compare(dict(enumerate(first)), dict(enumerate(second, start=shift)))
        differences += (
            found.low is not None and found.high is not None and found.low <= 0 <= found.high
        )
        alarms += found.significant
    has_median = median_interval(first) is not None
    return Shares(
        means / comparisons,
        medians / comparisons if has_median else None,
        differences / comparisons,
        alarms / comparisons,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--comparisons", type=positive_int, default=4000)
    parser.add_argument("--format", choices=FORMATS, default="table")
    arguments = parser.parse_args()
    with exit_on_error():
        rows: list[list[object]] = []
        for name, (draw, by_pairs) in CASES.items():
            for seeds in SEEDS:
                found = simulate(draw, seeds, arguments.comparisons, by_pairs=by_pairs)
                shares = (None if share is None else f"{share:.1%}" for share in found)
                rows.append([name, "paired t" if by_pairs else "Welch", seeds, *shares])
        columns = ["values", "test", "seeds", "mean", "median", "difference", "false alarms"]
        print(format_rows(columns, rows, arguments.format))


if __name__ == "__main__":
    main()
