"""The paper's numbers beside ours, and whether they are the same by a tolerance stated beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from common.utils.tables import format_rows

COLUMNS = ("row", "paper", "accepted", "ours", "deviation", "seeds", "verdict")


@dataclass(frozen=True)
class PaperRow:
    """One number of the paper.

    Args:
        name: what was measured.
        published: as the paper prints it; "" for a control that it does not have.
        value: `published` as a number, for figures.
        accepted: reproduced when the mean over our seeds lies between these two; None for a control.
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
    """What our seeds gave for a row. None: it did not happen until `limit`, where that run was ended."""

    row: PaperRow
    values: Sequence[float | None]
    limit: float | None = None

    @property
    def found(self) -> list[float]:
        return [value for value in self.values if value is not None]


@dataclass
class PaperTable:
    """Rows in the order in which they are added.

    Args:
        min_seeds: with fewer a row has no verdict.
        digits: after the decimal point.
        reduced: says what is smaller than in the paper; then nothing is called reproduced.
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
        """reproduced, not reproduced, or why it is neither."""
        accepted = measured.row.accepted
        if accepted is None:
            return "control"
        if len(measured.values) < self.min_seeds:
            return f"needs {self.min_seeds} seeds"
        missing = len(measured.values) - len(measured.found)
        mean = (sum(measured.found) + missing * (measured.limit or 0.0)) / len(measured.values)
        if missing and mean <= accepted[1]:  # at least that: ended too early to tell
            return "open"
        if not accepted[0] <= mean <= accepted[1]:
            return "not reproduced"
        return "agrees (reduced)" if self.reduced else "reproduced"

    @property
    def heading(self) -> str:
        return f"{self.title} (reduced: {self.reduced})" if self.reduced else self.title

    @property
    def lines(self) -> list[list[str]]:
        """What is printed under COLUMNS."""
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
    """As text in one of the formats of `common.utils.tables`; for programs as one table with a column more."""
    if style in ("csv", "json"):
        lines = [[table.heading, *line] for table in tables for line in table.lines]
        return format_rows(("table", *COLUMNS), lines, style)
    return "\n\n".join(f"{t.heading}\n\n{format_rows(COLUMNS, t.lines, style)}" for t in tables)


def _deviation(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return float((sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5)
