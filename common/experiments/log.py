"""The live log of one run: an append-only file of checksummed JSON lines.

    <crc32 of the rest, 8 hex digits> <JSON object>\\n

Each record is one `os.write` to a file opened with O_APPEND, so a killed process leaves whole
records and at most one partial line, which readers skip. The file is synced about once a second,
the most that a power loss can take. Kinds of records:

    {"kind": "start", "manifest": {...}}          the first one
    {"kind": "row", "row": n, "step", "epoch", "split", "time", "metrics": {...}}
    {"kind": "update", "manifest": {...}}         facts known later: parameters, status ...
    {"kind": "resume", "rows": n, "pid": p, "resumed": when, "duration": seconds worked before}

Rows are numbered from 0, so that a damaged line does not shift others: after a resume the rows
below n still count, and a row with an existing number supersedes that one and all later ones.
Earlier versions wrote no numbers: there each row, and each damaged row, has the next number.
"""

from __future__ import annotations

import errno
import json
import os
import time
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from common.errors import ExperimentError
from common.utils.files import named_in_errors
from common.utils.manifest import ID, identity

Record = dict[str, Any]
_SYNC_EVERY_SECONDS = 1.0
_encode = json.JSONEncoder(separators=(",", ":")).encode
_FULL = (errno.ENOSPC, errno.EDQUOT)
_MOST_WAITING = 100_000
_sync = getattr(os, "fdatasync", os.fsync)  # macOS has fsync only


class LogWriter:
    """Appends records to the log at `path`, which must exist (claiming the name creates it).

    While the disk is full, records wait in memory, in order, and are written once there is space,
    so that a full disk does not end a training of days. A warning is logged once.
    """

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND)
        size = os.fstat(self._descriptor).st_size
        self._synced = time.monotonic()
        # End half a line, left by a killed writer or a full disk, before the next record.
        self._torn = size > 0 and os.pread(self._descriptor, 1, size - 1) != b"\n"
        self._waiting: deque[bytes] = deque()

    def append(self, record: Record) -> None:
        """Write one record. Raises OSError for failures other than a full disk, or if too many records wait."""
        if self._descriptor < 0:  # the descriptor may be reused by now
            raise ExperimentError(f"the run of {self._path} has ended: cannot log to it")
        line = encode_record(record)
        if self._waiting:
            self._wait(line)
        else:
            try:
                self._write(line)
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                _warn(f"{self._path}: {error.strerror}; rows wait in memory until there is space")
                self._wait(line)
        if time.monotonic() - self._synced > _SYNC_EVERY_SECONDS:
            self.flush_unless_full()

    def _wait(self, line: bytes) -> None:
        if len(self._waiting) >= _MOST_WAITING:
            raise OSError(errno.ENOSPC, "the disk has been full for too long", self._path)
        self._waiting.append(line)

    def _write(self, line: bytes) -> None:
        with named_in_errors(self._path):
            written = os.write(self._descriptor, b"\n" + line if self._torn else line)
        self._torn = written < len(line) + self._torn
        if self._torn:
            raise OSError(errno.ENOSPC, "the disk is full", self._path)

    def flush(self) -> None:
        """Fsync everything appended so far. Raises OSError on a full disk."""
        while self._waiting:
            self._write(self._waiting[0])
            self._waiting.popleft()
        with named_in_errors(self._path):
            _sync(self._descriptor)
        self._synced = time.monotonic()

    def flush_unless_full(self) -> None:
        """`flush`, but on a full disk the records keep waiting."""
        self._synced = time.monotonic()
        try:
            self.flush()
        except OSError as error:
            if error.errno not in _FULL:
                raise

    def close(self) -> None:
        """Close the log. Raises OSError if the disk is full and waiting records are lost."""
        try:
            self.flush()
        finally:
            os.close(self._descriptor)
            self._descriptor = -1


def encode_record(record: Record) -> bytes:
    """Its line."""
    body = _encode(record).encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)


def _warn(message: str) -> None:
    from common.utils.logging import get_logger  # lazy: 15 ms with logging

    get_logger("experiments").warning(message)


def append_records(path: Path, records: Iterable[Record]) -> None:
    """Append to a log that many processes write to occasionally; create it if missing."""
    path.touch()
    writer = LogWriter(path)
    for record in records:
        writer.append(record)
    writer.close()


def read_records(path: Path, start: int = 0) -> Iterator[tuple[Record | None, int]]:
    """Yield (record, offset after its line) from offset `start`; None for a damaged line."""
    for line, end in _read_lines(path, start):
        yield _parse(line), end


def _read_lines(path: Path, start: int) -> Iterator[tuple[bytes, int]]:
    with path.open("rb") as file:
        file.seek(start)
        for line in file:
            start += len(line)
            if text := line.rstrip(b"\n"):
                yield text, start


def read_lines(path: Path) -> Iterator[tuple[Record | None, int]]:
    """Yield (record, line number from 1); None for a damaged line."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if text := line.rstrip(b"\n"):
                yield _parse(text), number


def damaged_lines(path: Path) -> list[int]:
    """The numbers of the damaged lines."""
    return [number for record, number in read_lines(path) if record is None]


def last_record(path: Path) -> Record | None:
    """The last record, if it is complete and at most 64 KB."""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 65536))
        return _parse(file.read().rstrip(b"\n").rpartition(b"\n")[2])


def _parse(line: bytes) -> Record | None:
    checksum, _, body = line.partition(b" ")
    if checksum != b"%08x" % zlib.crc32(body):
        return None
    try:
        record: Record = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and isinstance(record.get("kind"), str) else None


def _was_row(line: bytes) -> bool:
    """Whether a damaged line was a complete row: half a line of a killed writer never counted."""
    return b'"kind":"row"' in line and line.endswith(b"}}")


class LogContent:
    """The content of a log. Damaged lines are counted and skipped.

    Rows are read again by each `iter_rows`, because those of a long run do not fit in memory. With
    `start` (the `end` of an earlier read) only what was appended since.
    """

    def __init__(self, path: Path, start: int = 0) -> None:
        self.manifest: dict[str, Any] = {}
        self.num_rows = 0
        self.next_row = 0  # number of the next row
        self.damaged_lines = 0
        self.resumes = 0
        self.seconds = 0.0  # of work, including superseded rows
        self.end = start
        self._path, self._start = path, start
        self._is_worked = False  # earlier versions also counted the time between two starts
        self._first_row_of: dict[str, int] = {}  # by metric
        # (first, end, number of the first): ranges of rows in the file
        self._kept: list[tuple[int, int, int]] = []
        self._rows_in_file = 0
        for line, end in _read_lines(path, start):
            record = _parse(line)
            if record is None:
                self.damaged_lines += 1
                self.next_row += _was_row(line)
            else:
                self._take(record)
                self.end = end

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics in the order of their first logging."""
        return list(self._first_row_of)

    @property
    def rows(self) -> list[Record]:
        return list(self.iter_rows())

    def iter_rows(self) -> Iterator[Record]:
        """Yield the rows of the first read in order, without superseded ones."""
        position = 0
        kept = iter(self._kept)
        begin, end, _ = next(kept, (0, 0, 0))
        for record, _ in read_records(self._path, self._start):
            if record is None or record["kind"] != "row":
                continue
            if position == end:
                begin, end, _ = next(kept, (0, 0, 0))
            if end == 0:
                return
            if begin <= position:
                yield record
            position += 1

    def _take(self, record: Record) -> None:
        if record["kind"] == "row":
            self._take_row(record)
        elif record["kind"] == "resume":
            self.resumes += 1
            self._keep_below(record["rows"])
            self.manifest |= {"status": "running", "pid": record["pid"], "finished": None}
            self.manifest |= {key: record[key] for key in ("resumed", "duration") if key in record}
            self._is_worked |= "duration" in record
        else:
            self.manifest |= record["manifest"]
            if record["kind"] == "start":
                self._is_worked = ID in self.manifest
                self.manifest[ID] = identity(self.manifest)
        if self._is_worked:
            self.seconds = max(self.seconds, self.manifest.get("duration") or 0.0)

    def _take_row(self, record: Record) -> None:
        number = record.get("row", self.next_row)
        if number < self.next_row:  # the preceding resume is damaged
            self._keep_below(number)
        for name in record["metrics"]:
            self._first_row_of.setdefault(name, number)
        position, self._rows_in_file = self._rows_in_file, self._rows_in_file + 1
        begin, end, first = self._kept[-1] if self._kept else (0, -1, 0)
        if (end, first + end - begin) == (position, number):
            self._kept[-1] = (begin, position + 1, first)
        else:
            self._kept.append((position, position + 1, number))
        self.num_rows += 1
        self.next_row = number + 1
        self.seconds = max(self.seconds, record["time"] or 0.0)

    def _keep_below(self, number: int) -> None:
        """Discard the rows from `number` on; the next row has this number."""
        while self._kept and (last := self._kept[-1])[2] + last[1] - last[0] > number:
            begin, end, first = self._kept.pop()
            staying = max(number - first, 0)
            self.num_rows -= end - begin - staying
            if staying:
                self._kept.append((begin, begin + staying, first))
        self.next_row = number
        self._first_row_of = {name: row for name, row in self._first_row_of.items() if row < number}


def read_log(path: Path) -> LogContent:
    """Read a whole log."""
    return LogContent(path)
