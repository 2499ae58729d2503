"""What a metric says of a run: its summary, and which way is better."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

# Compiled when they are first used: a list, which needs none of them, is to be there at once.
_LOWER_IS_BETTER = r"(^|_)(loss|perplexity|ppl|error|bits|nats|bpb|bpc|entropy|seconds|time|memory|mae|mse|rmse|wer|cer)(_|$)"
_HIGHER_IS_BETTER = r"(^|_)(accuracy|acc|f1|bleu|rouge|auc|mfu|precision|recall|r2|throughput|tokens_per_second)(_|$)"
_SPLIT_ORDER = ("test", "val", "validation", "train")


class MetricSummary(NamedTuple):
    """One metric of one split of one run. `minimum` and `maximum` are over finite values only, and
    their steps the first at which they were reached."""

    name: str
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
    if re.search(_HIGHER_IS_BETTER, metric.lower()):
        return "max"
    return "min" if re.search(_LOWER_IS_BETTER, metric.lower()) else None


def preferred_split(splits: Iterable[str]) -> str:
    """The split that judges a run: test before val before train before any other."""
    found = sorted(set(splits))
    return next((split for split in _SPLIT_ORDER if split in found), found[0])


def summarise_rows(
    name: str, rows: Iterable[Mapping[str, Any]], known: Iterable[MetricSummary] = ()
) -> list[MetricSummary]:
    """Of the rows of a log. `known` are the summaries of the rows before these."""
    found: dict[tuple[str, str], list[Any]] = {(s.split, s.metric): list(s) for s in known}
    for row in rows:
        split, step = row["split"], row["step"]
        for metric, value in row["metrics"].items():
            entry = found.get((split, metric))
            if entry is None:
                entry = [name, split, metric, 0, value, *[None] * 5, step, 0]
                found[split, metric] = entry
            _add(entry, value, step)
    return [MetricSummary(*entry) for entry in found.values()]


def _add(entry: list[Any], value: float, step: int) -> None:
    """Add one value to the fields of a MetricSummary."""
    entry[3] += 1
    entry[5], entry[10] = value, step
    if not math.isfinite(value):
        entry[11] += 1
        return
    if entry[6] is None or value < entry[6]:
        entry[6], entry[8] = value, step
    if entry[7] is None or value > entry[7]:
        entry[7], entry[9] = value, step
