"""What a metric says of a run: its summary, and which way is better."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from operator import itemgetter
from typing import NamedTuple

_LOWER_IS_BETTER = re.compile(
    r"(^|_)(loss|perplexity|ppl|error|bits|nats|bpb|bpc|entropy|seconds|time|memory|mae|mse|rmse|wer|cer)(_|$)"
)
_HIGHER_IS_BETTER = re.compile(
    r"(^|_)(accuracy|acc|f1|bleu|rouge|auc|mfu|precision|recall|r2|throughput|tokens_per_second)(_|$)"
)
_SPLIT_ORDER = ("test", "val", "validation", "train")


class MetricSummary(NamedTuple):
    """One metric of one split of one run. `minimum` and `maximum` are over finite values only."""

    file: str
    split: str
    metric: str
    num_values: int
    first: float | None
    last: float | None
    minimum: float | None
    maximum: float | None
    minimum_step: int | None
    maximum_step: int | None
    last_step: int
    non_finite: int

    @property
    def diverged(self) -> bool:
        """Whether the last value is NaN or infinite (SQLite holds NaN as NULL)."""
        return self.last is None or math.isinf(self.last)

    def best(self, direction: str) -> float | None:
        return self.minimum if direction == "min" else self.maximum

    def best_step(self, direction: str) -> int | None:
        return self.minimum_step if direction == "min" else self.maximum_step


def metric_direction(metric: str) -> str | None:
    """`min` where lower is known to be better, `max` where higher is, else None."""
    if _HIGHER_IS_BETTER.search(metric.lower()):
        return "max"
    return "min" if _LOWER_IS_BETTER.search(metric.lower()) else None


def preferred_split(splits: Iterable[str]) -> str:
    """The split that judges a run: test before val before train before any other."""
    found = sorted(set(splits))
    return next((split for split in _SPLIT_ORDER if split in found), found[0])


class Rows(NamedTuple):
    """The rows of a run by column; None where a metric was not logged."""

    steps: list[int]
    splits: list[str]
    metrics: dict[str, list[float | None]]


def summarise(file: str, rows: Rows) -> list[MetricSummary]:
    """Of every split and metric of the run whose file is `file`."""
    summaries = []
    for split in dict.fromkeys(rows.splits):
        chosen = [index for index, other in enumerate(rows.splits) if other == split]
        for metric, column in rows.metrics.items():
            points = [(column[i], rows.steps[i]) for i in chosen]
            logged = [(value, step) for value, step in points if value is not None]
            if logged:
                summaries.append(_summary(file, split, metric, logged))
    return summaries


def _summary(file: str, split: str, metric: str, points: list[tuple[float, int]]) -> MetricSummary:
    """Of (value, step) in the order they were logged."""
    finite = [point for point in points if math.isfinite(point[0])]
    low, low_step = min(finite, default=(None, None))
    high, high_step = max(finite, key=itemgetter(0), default=(None, None))
    (first, _), (last, last_step) = points[0], points[-1]
    extremes = (low, high, low_step, high_step, last_step, len(points) - len(finite))
    return MetricSummary(file, split, metric, len(points), first, last, *extremes)
