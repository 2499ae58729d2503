"""Rows as a table for people, or as CSV, JSON or Markdown for programs."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal

FORMATS = ("table", "csv", "json", "markdown")


def format_rows(columns: Sequence[str], rows: Sequence[Sequence[object]], style: str) -> str:
    """`rows` under `columns` in one of FORMATS. JSON has null for NaN and infinities: it has no other."""
    columns = _distinct(columns)
    if style == "json":
        records = [dict(zip(columns, map(_json_value, row), strict=True)) for row in rows]
        return json.dumps(records, indent=2, ensure_ascii=False, default=str)
    if style == "csv":
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
        return buffer.getvalue().rstrip("\n")
    texts = [[_text(value) for value in row] for row in rows]
    numeric = [
        any(_is_number(row[i]) for row in rows)
        and all(row[i] is None or _is_number(row[i]) for row in rows)
        for i in range(len(columns))
    ]
    if style == "markdown":
        rule = ["---:" if is_numeric else "---" for is_numeric in numeric]
        header, *body = [
            [text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ") for text in row]
            for row in [columns, *texts]
        ]
        return "\n".join(f"| {' | '.join(row)} |" for row in [header, rule, *body])
    return _aligned(columns, texts, numeric)


def _distinct(columns: Sequence[str]) -> list[str]:
    """`loss, loss` -> `loss, loss_1`, as DuckDB names them."""
    distinct: list[str] = []
    for column in columns:
        number = sum(1 for other in columns[: len(distinct)] if other == column)
        distinct.append(f"{column}_{number}" if number else column)
    return distinct


def _aligned(columns: Sequence[str], texts: list[list[str]], numeric: list[bool]) -> str:
    columns = [column.replace("\n", " ") for column in columns]
    texts = [[text.replace("\n", " ") for text in row] for row in texts]
    widths = [max(map(len, column)) for column in zip(columns, *texts, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = zip(cells, widths, numeric, strict=True)
        return "  ".join(c.rjust(w) if n else c.ljust(w) for c, w, n in padded).rstrip()

    return "\n".join([line(columns), line(["-" * width for width in widths]), *map(line, texts)])


def format_duration(seconds: float | None) -> str:
    """75 -> 1m15s; empty for None."""
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | Decimal) and not isinstance(value, bool)


def _json_value(value: object) -> object:
    if isinstance(value, Decimal):  # DuckDB's sums of integers
        return int(value) if value == int(value) else float(value)
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
