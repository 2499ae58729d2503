"""Arithmetic on curves: smoothing, reduction to the pixels of a plot, bands over seeds, divergence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Band(NamedTuple):
    """Mean over seeds with its 95% interval; `n` seeds have a value at each `x`. (points,) each."""

    x: Floats
    mean: Floats
    low: Floats  # NaN where only one seed has a value
    high: Floats
    n: NDArray[np.int64]


class Trouble(NamedTuple):
    """Number of non-finite values, and the step of the first relevant one.

    `diverged`: the last value is non-finite, and `step` starts the final non-finite stretch.
    """

    points: int
    step: int
    diverged: bool


def smooth(values: Floats, weight: float) -> Floats:
    """Exponential moving average with bias correction (Kingma and Ba 2015, section 3), as in TensorBoard.

    `values`: (points,), `weight` in [0, 1). NaN and infinities are kept and excluded from the
        average.
    """
    if weight <= 0:
        return values
    # A Python loop: the recurrence has no NumPy form, and a million points take 0.2 seconds.
    average, correction, keep = 0.0, 1.0, 1.0 - weight
    smoothed = []
    for value in values.tolist():
        if math.isfinite(value):
            average = weight * average + keep * value
            correction *= weight
            value = average / (1.0 - correction)
        smoothed.append(value)
    return np.asarray(smoothed, dtype=np.float64)


def reduce(x: Floats, y: Floats, points: int, *, log_x: bool = False) -> NDArray[np.int64]:
    """Downsample to about `points` points that draw the same curve; return ascending indices.

    `x`: (points,) ascending. Keeps the minimum and maximum of each pixel column, so that no spike
        is lost, and one non-finite value, so that no gap is.
    """
    if len(x) <= points:
        return np.arange(len(x))
    finite = np.isfinite(y)
    columns = max(1, (points - 2) // (2 if finite.all() else 3))
    position = np.log10(x) if log_x else x
    span = position[-1] - position[0]
    column = np.zeros(len(x), dtype=np.int64)
    if span > 0:
        column = np.minimum((position - position[0]) / span * columns, columns - 1).astype(np.int64)
    starts = np.flatnonzero(np.diff(column, prepend=-1))
    sizes = np.diff(starts, append=len(x))
    chosen = [np.array([0, len(x) - 1])]
    for extreme, filler in ((np.minimum, np.inf), (np.maximum, -np.inf)):
        filled = np.where(finite, y, filler)
        found = finite & (filled == np.repeat(extreme.reduceat(filled, starts), sizes))
        chosen.append(_first_of_each(column, found))
    chosen.append(_first_of_each(column, ~finite))
    return np.unique(np.concatenate(chosen))


def _first_of_each(column: NDArray[np.int64], marked: NDArray[np.bool_]) -> NDArray[np.int64]:
    indices = np.flatnonzero(marked)
    return indices[np.unique(column[indices], return_index=True)[1]]


def band(
    curves: Sequence[tuple[Floats, Floats]],
    points: int,
    *,
    seeds: Sequence[int | None] = (),
    log_x: bool = False,
) -> Band:
    """Compute mean and t interval over seeds; `curves` are (x ascending, y) of each run.

    Runs with the same seed count once, with their mean; a run without a seed (None) counts
    separately.

    With up to `points` distinct x, each is a point, and runs are interpolated linearly; beyond
    that, each run counts with its mean per pixel column. No run counts before its first or after
    its last finite value.
    """
    from common.experiments.statistics import half_width  # scipy: half a second

    grid = np.unique(np.concatenate([x for x, _ in curves]))
    if len(grid) <= points:
        values = np.stack([_interpolated(grid, x, y) for x, y in curves])
    else:
        space = np.geomspace if log_x else np.linspace
        edges = space(grid[0], grid[-1], points + 1)
        values = np.stack([_column_means(edges, x, y) for x, y in curves])
        grid = (edges[1:] + edges[:-1]) / 2
    values = _mean_of_each_seed(values, seeds)
    present = np.isfinite(values)
    n = present.sum(axis=0)
    kept = n > 0
    grid, values, present, n = grid[kept], values[:, kept], present[:, kept], n[kept]
    mean = np.where(present, values, 0).sum(axis=0) / n
    squares = np.where(present, (values - mean) ** 2, 0).sum(axis=0)
    half = np.full(len(grid), np.nan)
    several = n > 1
    half[several] = half_width(squares[several] / (n[several] - 1), n[several])
    return Band(grid, mean, mean - half, mean + half, n)


def _mean_of_each_seed(values: Floats, seeds: Sequence[int | None]) -> Floats:
    """Average runs of one seed. values: (runs, points), NaN if missing; returns (seeds, points)."""
    runs: dict[object, list[int]] = {}
    for index, seed in enumerate(seeds):
        runs.setdefault(("run", index) if seed is None else seed, []).append(index)
    if len(runs) == len(seeds):
        return values
    means = np.full((len(runs), values.shape[1]), np.nan)
    for row, chosen in zip(means, runs.values(), strict=True):
        count = np.isfinite(values[chosen]).sum(axis=0)
        np.divide(np.nansum(values[chosen], axis=0), count, out=row, where=count > 0)
    return means


def _interpolated(grid: Floats, x: Floats, y: Floats) -> Floats:
    finite = np.isfinite(y)
    if not finite.any():
        return np.full(len(grid), np.nan)
    values: Floats = np.interp(grid, x[finite], y[finite], left=np.nan, right=np.nan)
    return values


def _column_means(edges: Floats, x: Floats, y: Floats) -> Floats:
    finite = np.isfinite(y)
    columns = len(edges) - 1
    column = np.clip(np.searchsorted(edges, x[finite], side="right") - 1, 0, columns - 1)
    counts = np.bincount(column, minlength=columns)
    sums = np.bincount(column, weights=y[finite], minlength=columns)
    means = np.full(columns, np.nan)
    np.divide(sums, counts, out=means, where=counts > 0)
    return means


def find_trouble(steps: Floats, values: Floats) -> Trouble | None:
    """Summary of NaN and infinities among `values`, by their steps; None if there are none."""
    order = np.argsort(steps, kind="stable")
    steps, values = steps[order], values[order]
    wrong = ~np.isfinite(values)
    if not wrong.any():
        return None
    diverged = bool(wrong[-1])
    finite = np.flatnonzero(~wrong)
    first = (finite[-1] + 1 if len(finite) else 0) if diverged else np.flatnonzero(wrong)[0]
    return Trouble(int(wrong.sum()), int(steps[first]), diverged)
