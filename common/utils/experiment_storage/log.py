"""The live log of one run: an append-only file of checksummed JSON lines.

    <crc32 of the rest, 8 hex digits> <JSON object>\\n

Each record is one `os.write` to a file opened with O_APPEND, so a killed process leaves whole
records and at most one cut line, which readers leave out. About once a second the file is synced: a
power loss takes no more than that. Kinds of records:

    {"kind": "start", "manifest": {...}}          the first one
    {"kind": "row", "step", "epoch", "split", "time", "metrics": {...}}
    {"kind": "update", "manifest": {...}}         facts learnt later: parameters, status ...
    {"kind": "resume", "rows": n, "pid": p}       only the first n rows still count
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

Record = dict[str, Any]
_SYNC_EVERY_SECONDS = 1.0
_encode = json.JSONEncoder(separators=(",", ":")).encode
_FULL = (errno.ENOSPC, errno.EDQUOT)
_MOST_WAITING = 100_000
_sync = getattr(os, "fdatasync", os.fsync)  # macOS has fsync only


class LogWriter:
    """Appends records to the log at `path`, which must exist (claiming the name created it).

    While the disk is full the records wait in memory, in order, and are written as soon as there is
    space: a training of days does not end for want of a kilobyte. That is told once.
    """

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND)
        size = os.fstat(self._descriptor).st_size
        self._synced = time.monotonic()
        # Half a line, left by a killed writer or a full disk, is closed off before the next record.
        self._torn = size > 0 and os.pread(self._descriptor, 1, size - 1) != b"\n"
        self._waiting: deque[bytes] = deque()

    def append(self, record: Record) -> None:
        """Write one record. Raises OSError when it cannot be written for another reason than a full
        disk, or when a great many wait already."""
        if self._descriptor < 0:  # the number may belong to another file by now
            raise ExperimentError(f"the run of {self._path} has ended: nothing more can be logged")
        body = _encode(record).encode()
        line = b"%08x %s\n" % (zlib.crc32(body), body)
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
        written = os.write(self._descriptor, b"\n" + line if self._torn else line)
        self._torn = written < len(line) + self._torn
        if self._torn:
            raise OSError(errno.ENOSPC, "the disk is full", self._path)

    def flush(self) -> None:
        """Make everything appended so far survive a power loss. Raises OSError on a full disk."""
        while self._waiting:
            self._write(self._waiting[0])
            self._waiting.popleft()
        _sync(self._descriptor)
        self._synced = time.monotonic()

    def flush_unless_full(self) -> None:
        """`flush`, but on a full disk the records go on waiting, as was told."""
        self._synced = time.monotonic()
        try:
            self.flush()
        except OSError as error:
            if error.errno not in _FULL:
                raise

    def close(self) -> None:
        """Raises OSError when the disk is full and records still wait; they are lost then."""
        try:
            self.flush()
        finally:
            os.close(self._descriptor)
            self._descriptor = -1


def _warn(message: str) -> None:
    from common.utils.logging import get_logger  # with logging, 15 ms that a list can do without

    get_logger("experiments").warning(message)


def append_records(path: Path, records: Iterable[Record]) -> None:
    """Append to a log that many processes write to, now and then; it is made where there is none."""
    path.touch()
    writer = LogWriter(path)
    for record in records:
        writer.append(record)
    writer.close()


def read_records(path: Path, start: int = 0) -> Iterator[tuple[Record | None, int]]:
    """(record, byte after its line) from the byte `start` on; None stands for a damaged line."""
    with path.open("rb") as file:
        file.seek(start)
        for line in file:
            start += len(line)
            if text := line.rstrip(b"\n"):
                yield _parse(text), start


def last_record(path: Path) -> Record | None:
    """The last record, where it is whole and no longer than 64 KB."""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 65536))
        return _parse(file.read().rstrip(b"\n").rpartition(b"\n")[2])


def _parse(line: bytes) -> Record | None:
    checksum, _, body = line.partition(b" ")
    if checksum != b"%08x" % zlib.crc32(body):
        return None
    record: Record = json.loads(body)
    return record


class LogContent:
    """What a log says, live or left behind. Damaged lines are counted and left out.

    The rows are read again at each `iter_rows`, because those of a long run do not fit in memory.
    With `start` (a byte that an earlier read ended at, see `end`) only what was appended since.
    """

    def __init__(self, path: Path, start: int = 0) -> None:
        self.manifest: dict[str, Any] = {}
        self.num_rows = 0
        self.damaged_lines = 0
        self.resumes = 0
        self.end = start
        self._path, self._start = path, start
        self._first_row_of: dict[str, int] = {}  # by metric
        self._kept: list[tuple[int, int]] = []  # ranges of the rows as they stand in the file
        self._rows_in_file = 0
        for record, end in read_records(path, start):
            self._take(record)
            if record is not None:
                self.end = end

    @property
    def metrics(self) -> list[str]:
        """The names of the metrics in the order in which they were first logged."""
        return list(self._first_row_of)

    @property
    def rows(self) -> list[Record]:
        return list(self.iter_rows())

    def iter_rows(self) -> Iterator[Record]:
        """The rows in order, without superseded ones: those that were there at the first read."""
        position = 0
        kept = iter(self._kept)
        begin, end = next(kept, (0, 0))
        for record, _ in read_records(self._path, self._start):
            if record is None or record["kind"] != "row":
                continue
            if position == end:
                begin, end = next(kept, (0, 0))
            if end == 0:
                return
            if begin <= position:
                yield record
            position += 1

    def _take(self, record: Record | None) -> None:
        if record is None:
            self.damaged_lines += 1
        elif record["kind"] == "row":
            for name in record["metrics"]:
                self._first_row_of.setdefault(name, self.num_rows)
            position, self._rows_in_file = self._rows_in_file, self._rows_in_file + 1
            if self._kept and self._kept[-1][1] == position:
                self._kept[-1] = (self._kept[-1][0], position + 1)
            else:
                self._kept.append((position, position + 1))
            self.num_rows += 1
        elif record["kind"] == "resume":
            self.resumes += 1
            self._keep_first(record["rows"])
            self.manifest |= {"status": "running", "pid": record["pid"], "finished": None}
        else:
            self.manifest |= record["manifest"]

    def _keep_first(self, rows: int) -> None:
        excess = self.num_rows - rows
        while excess > 0:
            begin, end = self._kept.pop()
            if end - begin > excess:
                self._kept.append((begin, end - excess))
            excess -= end - begin
        self.num_rows = min(self.num_rows, rows)
        self._first_row_of = {name: row for name, row in self._first_row_of.items() if row < rows}


def read_log(path: Path) -> LogContent:
    return LogContent(path)
