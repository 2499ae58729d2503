"""Tables of the paper's numbers beside ours, with a verdict by a tolerance stated beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from common.utils.tables import format_rows

COLUMNS = ("row", "paper", "accepted", "ours", "deviation", "seeds", "verdict")


@dataclass(frozen=True)
class PaperRow:
    """One number of the paper.

    Args:
        name: the measured quantity.
        published: as printed in the paper; "" for an additional control.
        value: `published` as a number, for figures.
        accepted: range of the mean over our seeds that counts as reproduced; None for a control.
    """

    name: str
    published: str = ""
    value: float | None = None
    accepted: tuple[float, float] | None = None

    @classmethod
    def from_deviation(
        cls, name: str, mean: float, deviation: float, *, times: float, digits: int
    ) -> PaperRow:
        """A published mean and standard deviation over seeds; accepted is mean +- times * deviation."""
        published = f"{mean:.{digits}f} ± {deviation:.{digits}f}"
        return cls(name, published, mean, (mean - times * deviation, mean + times * deviation))

    @classmethod
    def from_factor(cls, name: str, value: float, factor: float, digits: int = 0) -> PaperRow:
        """A single published number; accepted is value / factor to value * factor."""
        return cls(name, f"{value:,.{digits}f}", value, (value / factor, value * factor))


@dataclass
class Measured:
    """Results of our seeds for a row. None: not reached by `limit`, where that run ended."""

    row: PaperRow
    values: Sequence[float | None]
    limit: float | None = None

    @property
    def found(self) -> list[float]:
        return [value for value in self.values if value is not None]


@dataclass
class PaperTable:
    """A comparison table, with rows in the order of addition.

    Args:
        min_seeds: minimum seeds for a verdict.
        digits: decimal places.
        reduced: what is smaller than in the paper; then there are no verdicts.
    """

    title: str
    min_seeds: int = 3
    digits: int = 2
    reduced: str = ""
    rows: list[Measured] = field(default_factory=list)

    def add(
        self, row: PaperRow, values: Sequence[float | None], limit: float | None = None
    ) -> None:
        self.rows.append(Measured(row, values, limit))

    def verdict(self, measured: Measured) -> str:
        """The verdict: reproduced, not reproduced, or the reason for neither."""
        accepted = measured.row.accepted
        if accepted is None:
            return "control"
        if len(measured.values) < self.min_seeds:
            return f"needs {self.min_seeds} seeds"
        missing = len(measured.values) - len(measured.found)
        mean = (sum(measured.found) + missing * (measured.limit or 0.0)) / len(measured.values)
        if missing and mean <= accepted[1]:  # at least that: ended too early for a verdict
            return "open"
        if not accepted[0] <= mean <= accepted[1]:
            return "not reproduced"
        return "agrees (reduced)" if self.reduced else "reproduced"

    @property
    def heading(self) -> str:
        return f"{self.title} (reduced: {self.reduced})" if self.reduced else self.title

    @property
    def lines(self) -> list[list[str]]:
        """The cells under COLUMNS."""
        return [self._line(measured) for measured in self.rows]

    def _line(self, measured: Measured) -> list[str]:
        from common.experiments.statistics import estimate  # scipy: half a second

        row, found = measured.row, measured.found
        accepted = "" if row.accepted is None else " to ".join(map(self._number, row.accepted))
        ours = deviation = ""
        missing = len(measured.values) - len(found)
        if missing:
            limit = "" if measured.limit is None else f" by {self._number(measured.limit)}"
            ours = f"{missing} of {len(measured.values)} not{limit}"
            if found:
                ours += "; others " + ", ".join(map(self._number, sorted(found)))
        elif found:
            result = estimate(found)
            ours = self._number(result.mean)
            if result.half_width is not None:
                ours += f" ± {self._number(result.half_width)}"
                deviation = self._number(_deviation(found))
        seeds = str(len(measured.values))
        return [row.name, row.published, accepted, ours, deviation, seeds, self.verdict(measured)]

    def _number(self, value: float) -> str:
        return f"{value:,.{self.digits}f}"


def format_tables(tables: Sequence[PaperTable], style: str = "table") -> str:
    """Format in one of the formats of `common.utils.tables`; CSV and JSON get one table with an extra column."""
    if style in ("csv", "json"):
        lines = [[table.heading, *line] for table in tables for line in table.lines]
        return format_rows(("table", *COLUMNS), lines, style)
    return "\n\n".join(f"{t.heading}\n\n{format_rows(COLUMNS, t.lines, style)}" for t in tables)


def _deviation(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return float((sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5)
