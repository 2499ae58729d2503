"""Format rows as a table for display, or as CSV, JSON or Markdown."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from datetime import datetime
from types import NoneType
from typing import TYPE_CHECKING, cast

from common.terminal import printable

if TYPE_CHECKING:
    from decimal import Decimal

    import pandas as pd

FORMATS = ("table", "csv", "json", "markdown")


class Report:
    """A table with notebook display, `print` as text and `to_pandas`.

    Args:
        columns: column names.
        rows: one value per column.
        broken: (file, error) of each unreadable file, whose experiments are missing.
        notes: sentences about exclusions and caveats.
    """

    def __init__(
        self,
        columns: list[str],
        rows: list[list[object]],
        title: str = "",
        broken: Sequence[tuple[str, str]] = (),
        notes: Sequence[str] = (),
    ) -> None:
        self.columns = columns
        self.rows = rows
        self.title = title
        self.broken = broken
        self.notes = notes

    def __str__(self) -> str:
        return format_rows(self.columns, self.rows, "table")

    __repr__ = __str__

    def _repr_html_(self) -> str:
        left_out = [f"left out {file}: {error}" for file, error in self.broken]
        return format_html(
            self.columns, self.rows, "; ".join([self.title, *self.notes, *left_out]).strip("; ")
        )

    def to_pandas(self) -> pd.DataFrame:
        """The rows as a DataFrame."""
        import pandas as pd

        return pd.DataFrame(self.rows, columns=self.columns)


def format_rows(columns: Sequence[str], rows: Sequence[Sequence[object]], style: str) -> str:
    """Format `rows` under `columns` in one of FORMATS. JSON has null for NaN and infinities.

    Tables and Markdown escape terminal control characters; CSV and JSON keep every character.
    """
    columns = _distinct(columns)
    if style == "json":
        records = [dict(zip(columns, map(_json_value, row), strict=True)) for row in rows]
        return json.dumps(records, indent=2, ensure_ascii=False, default=str)
    if style == "csv":
        import csv
        import io

        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
        return buffer.getvalue().rstrip("\n")
    cells: list[Sequence[object]] = list(zip(*rows, strict=True)) or [()] * len(columns)
    kinds = [{type(value) for value in column} for column in cells]
    numeric = [_is_numeric(found - {NoneType}) for found in kinds]
    texts = [_texts(column, found) for column, found in zip(cells, kinds, strict=True)]
    if style == "markdown":
        rule = ["---:" if is_numeric else "---" for is_numeric in numeric]
        body = zip(*(map(_in_markdown, column) for column in texts), strict=True)
        header = map(_in_markdown, columns)
        return printable("\n".join(f"| {' | '.join(row)} |" for row in [header, rule, *body]))
    return printable(_aligned(columns, texts, numeric))


def format_html(columns: Sequence[str], rows: Sequence[Sequence[object]], title: str = "") -> str:
    """HTML for notebooks; all text is escaped."""
    from html import escape

    cells = [list(column) for column in zip(*rows, strict=True)]
    numeric = [_is_numeric({type(value) for value in column} - {NoneType}) for column in cells]
    aligns = ["right" if is_numeric else "left" for is_numeric in numeric or [False] * len(columns)]

    def line(tag: str, texts: Sequence[str]) -> str:
        pairs = zip(texts, aligns, strict=True)
        return "".join(f'<{tag} style="text-align:{a}">{escape(t)}</{tag}>' for t, a in pairs)

    body = "".join(f"<tr>{line('td', list(map(_text, row)))}</tr>" for row in rows)
    caption = f"<caption>{escape(title)}</caption>" if title else ""
    return f"<table>{caption}<thead><tr>{line('th', columns)}</tr></thead><tbody>{body}</tbody></table>"


def _is_numeric(kinds: set[type]) -> bool:
    return bool(kinds) and all(k in (int, float) or _is_decimal(k) for k in kinds)


def _is_decimal(kind: type) -> bool:
    return kind.__name__ == "Decimal"  # DuckDB's sums; its module takes 3 ms to import


def _texts(column: Sequence[object], kinds: set[type]) -> Sequence[str]:
    """Format the cells of a column for display; common types at once, for long lists."""
    if kinds == {str}:
        return cast("Sequence[str]", column)  # checked by `kinds`
    if kinds == {float}:
        return list(map("{:.6g}".format, column))
    return list(map(str, column)) if kinds == {int} else list(map(_text, column))


def _in_markdown(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


def _distinct(columns: Sequence[str]) -> list[str]:
    """`loss, loss` -> `loss, loss_1`, as DuckDB names them."""
    distinct: list[str] = []
    for column in columns:
        number = sum(1 for other in columns[: len(distinct)] if other == column)
        distinct.append(f"{column}_{number}" if number else column)
    return distinct


def _aligned(
    columns: Sequence[str], texts: Sequence[Sequence[str]], numeric: Sequence[bool]
) -> str:
    filled, widths = [], []
    for title, column in zip(columns, texts, strict=True):
        cells = [title, *column]
        if "\n" in "".join(cells):
            cells = [cell.replace("\n", " ") for cell in cells]
        filled.append(cells)
        widths.append(max(map(len, cells)))
    marks = ["" if is_numeric else "-" for is_numeric in numeric]  # right, left aligned
    row = "  ".join(f"%{mark}{width}s" for mark, width in zip(marks, widths, strict=True))
    lines = list(map(row.__mod__, zip(*filled, strict=True)))  # whole rows, for long lists
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(map(str.rstrip, lines))


def _json_value(value: object) -> object:
    if _is_decimal(type(value)):
        number = cast("Decimal", value)
        return int(number) if number == int(number) else float(number)
    if isinstance(value, dict):
        return {str(key): _json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, datetime):
        return value.astimezone().strftime("%Y-%m-%d %H:%M")
    return str(value)
