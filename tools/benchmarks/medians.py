"""Distribution-free confidence intervals of medians, for benchmark ratios."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from scipy import stats

_ALPHA = 0.05


def median_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Distribution-free 95% interval of a median; None below 6 values.

    Interpolates between order statistics (Hettmansperger and Sheather 1986).
    """
    n, ordered = len(values), sorted(values)
    if n < 6:
        return None
    depth, weight = _median_ranks(n)
    low = (1 - weight) * ordered[depth - 1] + weight * ordered[depth]
    high = (1 - weight) * ordered[n - depth] + weight * ordered[n - depth - 1]
    return low, high


@lru_cache(maxsize=256)
def _median_ranks(n: int) -> tuple[int, float]:
    """Return (d, interpolation weight from the d-th smallest and largest value towards the next ones)."""
    # The median lies between the d-th smallest and the d-th largest with 1 - 2 P(B < d).
    depth = int(stats.binom.ppf(_ALPHA / 2, n, 0.5))
    outer, inner = (1 - 2 * float(stats.binom.cdf(d - 1, n, 0.5)) for d in (depth, depth + 1))
    share = (outer - (1 - _ALPHA)) / (outer - inner)
    return depth, (n - depth) * share / (depth + (n - 2 * depth) * share)
