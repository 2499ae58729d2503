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
from pathlib import Path
from typing import Any

from common.errors import ExperimentError

_SYNC_EVERY_SECONDS = 1.0
_encode = json.JSONEncoder(separators=(",", ":")).encode
_sync = getattr(os, "fdatasync", os.fsync)  # macOS has fsync only


class LogContent:
    """What a log says: the manifest as it stands, and the rows in order without superseded ones."""

    def __init__(self) -> None:
        self.manifest: dict[str, Any] = {}
        self.rows: list[dict[str, Any]] = []
        self.damaged_lines = 0


class LogWriter:
    """Appends records to the log at `path`, which must exist (claiming the name created it)."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND)
        size = os.fstat(self._descriptor).st_size
        # Half a line, left by a killed writer or a full disk, is closed off before the next record.
        self._synced = time.monotonic()
        self._torn = size > 0 and os.pread(self._descriptor, 1, size - 1) != b"\n"

    def append(self, record: dict[str, Any]) -> None:
        """Write one record. Raises OSError when the disk is full; earlier records stay readable."""
        if self._descriptor < 0:  # the number may belong to another file by now
            raise ExperimentError(f"the run of {self._path} has ended: nothing more can be logged")
        body = _encode(record).encode()
        line = (b"\n" if self._torn else b"") + b"%08x %s\n" % (zlib.crc32(body), body)
        written = os.write(self._descriptor, line)
        self._torn = written < len(line)
        if self._torn:
            raise OSError(errno.ENOSPC, "the disk is full: the record was not written", self._path)
        if time.monotonic() - self._synced > _SYNC_EVERY_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Make everything appended so far survive a power loss."""
        _sync(self._descriptor)
        self._synced = time.monotonic()

    def close(self) -> None:
        self.flush()
        os.close(self._descriptor)
        self._descriptor = -1


def read_log(path: Path) -> LogContent:
    """Read a log, live or left behind. Damaged lines are counted and left out."""
    content = LogContent()
    for line in path.read_bytes().split(b"\n"):
        if not line:
            continue
        record = _parse(line)
        if record is None:
            content.damaged_lines += 1
        elif record["kind"] == "row":
            content.rows.append(record)
        elif record["kind"] == "resume":
            del content.rows[record["rows"] :]
            content.manifest |= {"status": "running", "pid": record["pid"], "finished": None}
        else:
            content.manifest |= record["manifest"]
    return content


def _parse(line: bytes) -> dict[str, Any] | None:
    checksum, _, body = line.partition(b" ")
    if checksum != b"%08x" % zlib.crc32(body):
        return None
    record: dict[str, Any] = json.loads(body)
    return record
