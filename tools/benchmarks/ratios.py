"""Rows of the table that compares our training with others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, NamedTuple


class Ratio(NamedTuple):
    """Ours divided by theirs, and its 95% interval (None for fewer than 6 rounds)."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.low is None:
            return f"{self.value:.4g}"
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


class Target(NamedTuple):
    """Target of a ratio, or of our figure if there is no peer."""

    sign: str  # ">=" or "<="
    limit: float

    def __str__(self) -> str:
        return f"{self.sign} {self.limit:g}"

    def is_reached(self, value: float) -> bool:
        return value >= self.limit if self.sign == ">=" else value <= self.limit


class Row(NamedTuple):
    """One line of work."""

    work: str
    unit: str
    ours: float | None = None
    peer: str = ""  # source of `theirs`
    theirs: float | None = None
    ratio: Ratio | None = None
    target: Target | None = None
    reached: bool | None = None


@dataclass
class Measured:
    """The rows of a benchmark, and all its measurements (JSON values)."""

    rows: list[Row] = field(default_factory=list)
    raw: dict[str, Any] = field(default_factory=dict)


def at_least(limit: float) -> Target:
    return Target(">=", limit)


def at_most(limit: float) -> Target:
    return Target("<=", limit)


def ratio_of(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Median over rounds of ours divided by theirs in the same round.

    The interval is that of the median, see `median_interval`.
    """
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    return interval(ratios)


def interval(ratios: Sequence[float]) -> Ratio:
    """The median of `ratios` with its 95% interval."""
    from tools.benchmarks.medians import median_interval  # scipy: half a second

    return Ratio(median(ratios), *(median_interval(ratios) or (None, None)))


def compared(
    work: str,
    unit: str,
    ours: Sequence[float],
    peer: str,
    theirs: Sequence[float],
    target: Target | None = None,
) -> Row:
    """A row of medians over the rounds of both, and of their ratio."""
    ratio = ratio_of(ours, theirs)
    reached = None if target is None else target.is_reached(ratio.value)
    return Row(work, unit, median(ours), peer, median(theirs), ratio, target, reached)


def limited(work: str, unit: str, ours: float, target: Target) -> Row:
    """A row whose figure itself has a target."""
    return Row(work, unit, ours, target=target, reached=target.is_reached(ours))


def as_table(rows: Sequence[Row]) -> tuple[list[str], list[list[object]]]:
    """(columns, cells)"""
    columns = ["work", "unit", "ours", "peer", "theirs", "ratio", "target", ""]
    return columns, [
        [
            *(row.work, row.unit, _rounded(row.ours), row.peer, _rounded(row.theirs)),
            *(None if cell is None else str(cell) for cell in (row.ratio, row.target)),
            None if row.reached is None else "reached" if row.reached else "missed",
        ]
        for row in rows
    ]


def _rounded(value: float | None) -> float | None:
    """Four digits are more than a shared machine repeats."""
    return None if value is None else float(f"{value:.4g}")
