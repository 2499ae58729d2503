"""Rows of the table of a benchmark."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from statistics import median
from typing import NamedTuple

Cell = float | str  # of a peer: its figure, or the reason for none


class Spread(NamedTuple):
    """Statistics of the repetitions of one measurement."""

    median: float
    minimum: float


class Row(NamedTuple):
    """One measurement: our figure, its limit, and those of the peers."""

    work: str
    unit: str
    ours: float | None = None  # the median
    minimum: float | None = None
    limit: str | None = None
    met: bool | None = None
    peers: Mapping[str, Cell] = {}


def spread(values: Sequence[float]) -> Spread:
    return Spread(median(values), min(values))


def more_than(values: Sequence[float], base: Sequence[float]) -> Spread:
    """Difference to `base`, separately for medians and minima."""
    return Spread(median(values) - median(base), min(values) - min(base))


def limited(
    work: str, unit: str, ours: Spread, at_most: float, peers: Mapping[str, Cell] | None = None
) -> Row:
    """A row whose median has the limit `at_most`."""
    return Row(work, unit, *ours, f"<= {at_most:g}", ours.median <= at_most, peers or {})


def as_table(rows: Sequence[Row]) -> tuple[list[str], list[list[object]]]:
    """Return (columns, cells), with a column for each peer in any row."""
    peers = list(dict.fromkeys(name for row in rows for name in row.peers))
    columns = ["work", "unit", "ours", "minimum", "limit", "met", *peers]
    return columns, [
        [
            *(row.work, row.unit, _rounded(row.ours), _rounded(row.minimum), row.limit),
            None if row.met is None else "yes" if row.met else "no",
            *(_rounded(row.peers.get(peer)) for peer in peers),
        ]
        for row in rows
    ]


def _rounded(value: Cell | None) -> Cell | None:
    """Four digits are more than a shared machine repeats."""
    return value if value is None or isinstance(value, str) else float(f"{value:.4g}")


def say(message: str) -> None:
    """Print progress to stderr."""
    print(message, file=sys.stderr, flush=True)
