"""CSV, JSON lines and Parquet with a row per logged row, the format of our own export.

The columns `step`, `epoch`, `split` and `time` are used as in `save_experiment`; every other one is
a metric with numbers or empty cells. A column `experiment_name` (or `run`, or `name`) names the
experiment of a row; without it the file is one experiment, named like the file. Nothing is split or
merged: an export is restored row by row.
"""

from __future__ import annotations

import csv
import hashlib
import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from apps.importing.foreign import (
    Content,
    ForeignRun,
    readable_errors,
)
from apps.importing.tags import DEFAULT_SPLIT, distinct_names
from common.errors import ExperimentError
from common.experiments.rows import FIXED_COLUMNS, FOOTER_KEY, make_row

ENDINGS = (".csv", ".tsv", ".jsonl", ".parquet")
_NAME_COLUMNS = ("experiment_name", "run", "name")


class Record(NamedTuple):
    """One row of a table: its location, for messages, and its cells by column."""

    where: str
    cells: dict[str, Any]


class _Span(NamedTuple):
    """Range of the rows of one experiment in a file: bytes `start` to `end`, from `line`."""

    start: int
    line: int
    end: int
    digest: Any


def runs_of_file(path: Path) -> list[ForeignRun]:
    """One run per experiment in the file. Raises ExperimentError if it is unreadable."""
    if path.suffix.lower() == ".parquet":
        parquet = _ParquetFile(path)
        return [ParquetRun(parquet, name) for name in parquet.names]
    file = _LinesFile(path)
    return [LinesRun(file, name, span) for name, span in file.spans().items()]


class LinesRun(ForeignRun):
    """An experiment in a CSV or JSON lines file."""

    def __init__(self, file: _LinesFile, name: str, span: _Span) -> None:
        super().__init__(file.path, name)
        self.kind = file.path.suffix.lower().removeprefix(".")
        self._file = file
        self._span = span

    def fingerprint(self) -> str:
        return str(self._span.digest.hexdigest())

    def read(self) -> Content:
        found = self._file.records(self._span.start, self._span.line, self._span.end)
        records = (record for _, record in found if self._file.name_of(record) == self.identifier)
        return _content(self.path, self.identifier, records, self._file.warnings)


class ParquetRun(ForeignRun):
    """An experiment in a Parquet file; one of our own store includes its manifest."""

    kind = "parquet"

    def __init__(self, file: _ParquetFile, name: str) -> None:
        super().__init__(file.path, name)
        self._file = file

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for record in self._file.records(self.identifier):
            digest.update(repr(record.cells).encode())
        return digest.hexdigest()

    def read(self) -> Content:
        content = _content(self.path, self.identifier, self._file.records(self.identifier), [])
        if self._file.manifest.get("name") == self.identifier:
            content.facts.update(self._file.manifest)
        return content


def _content(path: Path, name: str, records: Iterator[Record], warnings: list[str]) -> Content:
    rows: list[dict[str, Any]] = []
    metrics: dict[str, str] = {}
    known: dict[str, str] = {}
    renamed: list[str] = []
    for record in records:
        if new := [column for column in _metric_columns(record.cells) if column not in metrics]:
            metrics, renamed = distinct_names([*metrics, *new])
        rows.append(_row(path, record, len(rows), metrics, known))
    # A table has no date: use that of its file.
    changed = datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="milliseconds")
    duration = max((row["time"] for row in rows if row["time"] is not None), default=None)
    facts = {"name": name, "status": "finished", "started": changed, "duration": duration}
    return Content(facts, rows, warnings + renamed)


def _row(
    path: Path, record: Record, index: int, metrics: dict[str, str], known: dict[str, str]
) -> dict[str, Any]:
    fixed = {column.lower(): cell for column, cell in record.cells.items() if _is_fixed(column)}
    where = f"{path}, {record.where}"
    numbers = {key: _number(fixed.get(key), key, where) for key in ("epoch", "time")}
    step = _number(fixed["step"], "step", where) if "step" in fixed else index
    values = {
        metrics[column]: value
        for column in _metric_columns(record.cells)
        if (value := _number(record.cells[column], column, where)) is not None
    }
    split = fixed.get("split") or DEFAULT_SPLIT
    try:
        return make_row(step, split, metrics=values, known=known, **numbers)
    except ExperimentError as error:
        raise ExperimentError(f"{where}: {error.message}", error.hint) from error


def _metric_columns(cells: dict[str, Any]) -> list[str]:
    name_column = _name_column(cells)
    return [c for c in cells if not _is_fixed(c) and c != name_column]


def _is_fixed(column: str) -> bool:
    return column.lower() in FIXED_COLUMNS


def _name_column(cells: dict[str, Any]) -> str | None:
    by_lower = {column.lower(): column for column in reversed(cells)}
    return next((by_lower[name] for name in _NAME_COLUMNS if name in by_lower), None)


def _number(cell: object, column: str, where: str) -> int | float | None:
    """The number in a cell, None if empty; integers remain integers."""
    if cell is None or (isinstance(cell, int | float) and not isinstance(cell, bool)):
        return cell
    text = str(cell).strip()
    if not text:
        return None
    for kind in (int, float):
        try:
            if "_" not in text and not isinstance(cell, bool):  # Python parses 1_000, others do not
                return kind(text)
        except ValueError:
            continue
    raise ExperimentError(
        f"{where}: column '{column}' must contain numbers, got {text[:40]!r}",
        "remove columns that are not metrics",
    )


class _LinesFile:
    """A CSV or JSON lines file, read record by record from any offset."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.warnings: list[str] = []
        self._is_json = path.suffix.lower() == ".jsonl"
        self._columns: list[str] = []

    def spans(self) -> dict[str, _Span]:
        """{experiment: range of its rows}, from one pass over the file."""
        spans: dict[str, _Span] = {}
        start, line = 0, 1
        for lines, record in self.records(start, line, self.path.stat().st_size):
            name = self.name_of(record)
            span = spans.setdefault(name, _Span(start, line, 0, hashlib.sha256()))
            span.digest.update(repr(record.cells).encode())
            spans[name] = span._replace(end=lines.position)
            start, line = lines.position, lines.number + 1
        return spans

    def name_of(self, record: Record) -> str:
        column = _name_column(record.cells)
        name = self.path.stem if column is None else str(record.cells[column] or "").strip()
        if not name:
            raise ExperimentError(f"{self.path}, {record.where}: column '{column}' is empty")
        return name

    def records(self, start: int, line: int, end: int) -> Iterator[tuple[_Lines, Record]]:
        """Yield (offset after the record, record) between two offsets; `line` is that of the first."""
        self.warnings.clear()
        read = self._json_records if self._is_json else self._csv_records
        with readable_errors(self.path, UnicodeDecodeError, csv.Error):
            if start == 0 and not self._is_json:
                start, line = self._header.position, self._header.number + 1
            yield from read(_Lines(self.path, start, line, end))

    def _json_records(self, lines: _Lines) -> Iterator[tuple[_Lines, Record]]:
        for line in lines:
            where = f"line {lines.number}"
            if not line.strip():
                continue
            try:
                cells = json.loads(line)
            except ValueError as error:
                if lines.is_cut:
                    self.warnings.append(f"{where} is cut and was left out")
                    return
                raise ExperimentError(f"{self.path}, {where}: {error}") from error
            if not isinstance(cells, dict):
                raise ExperimentError(f"{self.path}, {where}: expected an object, got {line[:40]}")
            yield lines, Record(where, cells)

    def _csv_records(self, lines: _Lines) -> Iterator[tuple[_Lines, Record]]:
        columns = self._columns
        reader = csv.reader(lines, strict=True, delimiter=self._delimiter)
        while True:
            number = lines.number + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if "unexpected end" in str(error):
                    self.warnings.append(f"line {number} is cut and was left out")
                    return
                raise ExperimentError(f"{self.path}, line {number}: {error}") from error
            if not cells:
                continue
            if len(cells) < len(columns) and lines.is_cut:
                self.warnings.append(f"line {number} is cut and was left out")
                return
            if len(cells) != len(columns):
                raise ExperimentError(
                    f"{self.path}, line {number}: {len(cells)} cells for {len(columns)} columns"
                )
            if lines.is_cut:
                self.warnings.append(f"line {number} has no line end: it may be cut")
            yield lines, Record(f"line {number}", dict(zip(columns, cells, strict=True)))

    @property
    def _delimiter(self) -> str:
        return "\t" if self.path.suffix.lower() == ".tsv" else ","

    @cached_property
    def _header(self) -> _Lines:
        """Open the file after its first line; fills `_columns`."""
        lines = _Lines(self.path, 0, 1, self.path.stat().st_size)
        self._columns = [c.strip() for c in next(csv.reader(lines, delimiter=self._delimiter), [])]
        if twice := [name for name, times in Counter(self._columns).items() if times > 1]:
            raise ExperimentError(f"{self.path} has two columns '{twice[0]}'")
        return lines


class _Lines:
    """The decoded lines of a file from offset `start`, in line `line`, to offset `end`.

    `position` is the offset after the last line read, `number` its line number.
    """

    def __init__(self, path: Path, start: int, line: int, end: int) -> None:
        self.position = start
        self.number = line - 1
        self.is_cut = False  # the last line has no line end
        self._end = end
        self._lines = self._read(path)

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        return next(self._lines)

    def _read(self, path: Path) -> Iterator[str]:
        with path.open("rb") as file:
            file.seek(self.position)
            while self.position < self._end and (line := file.readline()):
                encoding = (
                    "utf-8" if self.position else "utf-8-sig"
                )  # Excel writes a byte order mark
                self.position += len(line)
                self.number += 1
                self.is_cut = not line.endswith(b"\n")
                yield line.decode(encoding)


class _ParquetFile:
    """A Parquet file with one or more experiments."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.path = path
        self._errors = (pa.ArrowException, ValueError)
        with readable_errors(path, *self._errors), pq.ParquetFile(path) as file:
            footer = json.loads((file.schema_arrow.metadata or {}).get(FOOTER_KEY, b"{}"))
            self.manifest: dict[str, Any] = footer if isinstance(footer, dict) else {}
            self._column = _name_column(dict.fromkeys(file.schema_arrow.names))
            sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            self._group_ends = list(accumulate(sizes))
            self._spans: dict[str, tuple[int, int]] = {}
            for index, name in enumerate(self._names(file)):
                self._spans[name] = (self._spans.get(name, (index, 0))[0], index + 1)
        if not self._spans and "name" in self.manifest:
            self._spans[str(self.manifest["name"])] = (0, 0)  # an experiment without rows
        self._loaded: tuple[list[int], Any] = ([], None)

    @property
    def names(self) -> list[str]:
        return list(self._spans)

    def _names(self, file: Any) -> Iterator[str]:
        if self._column is None:
            yield from [self.path.stem] * file.metadata.num_rows
        else:
            for batch in file.iter_batches(columns=[self._column]):
                yield from map(str, batch.column(0).to_pylist())

    def records(self, name: str) -> Iterator[Record]:
        first, end = self._spans[name]
        groups = list(range(bisect_right(self._group_ends, first), len(self._group_ends)))
        groups = [g for g in groups if g == 0 or self._group_ends[g - 1] < end]
        before = self._group_ends[groups[0] - 1] if groups and groups[0] else 0
        with readable_errors(self.path, *self._errors):
            table = self._load(groups).slice(first - before, end - first)
            index = first
            for batch in table.to_batches(max_chunksize=10_000):
                for cells in batch.to_pylist():
                    index += 1
                    if self._column is None or str(cells[self._column]) == name:
                        yield Record(f"row {index}", cells)

    def _load(self, groups: list[int]) -> Any:
        """The row groups as a table; the last ones are cached, since experiments share them."""
        import pyarrow.parquet as pq

        if self._loaded[1] is None or self._loaded[0] != groups:
            with pq.ParquetFile(self.path) as file:
                self._loaded = (groups, file.read_row_groups(groups))
        return self._loaded[1]
