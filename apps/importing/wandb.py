"""Weights & Biases: the `.wandb` file in the folder of an offline (or online) run.

The file is a log in LevelDB format (32 KiB blocks of records: CRC-32, length, kind) after a 7-byte
header; each record is a protobuf message of the package wandb. The framing is parsed here, because
newer releases (such as 0.31) have no Python reader. System metrics (`stats` records) and
non-numeric values (images, histograms) are skipped.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.importing.foreign import (
    Content,
    ForeignRun,
    fingerprint_of_files,
    iso_time,
    readable_errors,
)
from apps.importing.tags import Point, rows_of_points
from common.errors import ExperimentError, MissingPackageError

if TYPE_CHECKING:
    from wandb.proto.wandb_internal_pb2 import Record

_HEADER = b":W&B\xe1\xbe\x00"
_BLOCK_BYTES = 32 * 1024
_RECORD = struct.Struct("<IHB")  # CRC-32 of kind and data, length of the data, kind
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_CTRL_C = 255  # exit code of an interrupted run in wandb


class WandbRun(ForeignRun):
    kind = "wandb"

    def __init__(self, path: Path) -> None:
        super().__init__(path, path.stem.removeprefix("run-"))

    def fingerprint(self) -> str:
        return fingerprint_of_files([self.path])

    def read(self) -> Content:
        reader = _Reader()
        with readable_errors(self.path, ValueError):
            for record in _messages(self.path, reader.warnings):
                reader.add(record)
        if not reader.has_run:
            raise ExperimentError(f"{self.path} is truncated before its run record")
        if reader.left_out:
            names = ", ".join(sorted(reader.left_out))
            reader.warnings.append(f"skipped non-numeric values: {names}")
        rows, warnings = rows_of_points(reader.points())
        environment = _metadata_file(self.path.parent / "files" / "wandb-metadata.json")
        facts = environment | {k: v for k, v in reader.facts.items() if v not in ("", None)}
        facts |= {
            "name": facts.get("name") or self.identifier,
            "status": reader.status,
            "started": iso_time(reader.started),
            "finished": iso_time(reader.finished),
            "config": {k: v for k, v in reader.config.items() if k != "_wandb"},
            "summary": {k: v for k, v in reader.summary.items() if not k.startswith("_")},
        }
        return Content(facts, rows, reader.warnings + warnings)


class _Reader:
    def __init__(self) -> None:
        self.facts: dict[str, Any] = {}
        self.config: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}
        self.warnings: list[str] = []
        self.left_out: set[str] = set()
        self.started = 0.0
        self.finished: float | None = None
        self.status = "interrupted"  # until its end is read
        self.has_run = False
        self._history: list[dict[str, Any]] = []

    def add(self, record: Record) -> None:
        kind = record.WhichOneof("record_type")
        if kind == "run":
            self._add_run(record.run)
        elif kind == "config":
            _update(self.config, record.config)
        elif kind == "summary":
            self.summary |= dict(_numbers_and_texts(_pairs(record.summary.update)))
            for item in record.summary.remove:
                self.summary.pop("/".join(item.nested_key) or item.key, None)
        elif kind == "history":
            self._add_history(record.history)
        elif kind == "environment":
            self._add_environment(record.environment)
        elif kind == "exit":
            code = record.exit.exit_code
            self.status = {0: "finished", _CTRL_C: "interrupted"}.get(code, "failed")
            self._ended(self.started + record.exit.runtime)

    def _add_run(self, run: Any) -> None:
        self.has_run = True
        _update(self.config, run.config)
        self.started = self.started or run.start_time.ToMicroseconds() / 1e6
        self.facts |= {
            "name": run.display_name,
            "project": run.project,
            "tags": list(run.tags),
            "note": run.notes,
            "host": run.host,
            "group": run.run_group,
            "job_type": run.job_type,
            "git_commit": run.git.commit,
        }

    def _add_environment(self, environment: Any) -> None:
        # Several records, each with updates since the last.
        found = {
            "host": environment.host,
            "user": environment.username,
            "git_commit": environment.git.commit,
            "platform": environment.os,
            "python": environment.python,
            "argv": [environment.program, *environment.args] if environment.program else None,
        }
        self.facts |= {key: value for key, value in found.items() if value}

    def _add_history(self, history: Any) -> None:
        row: dict[str, Any] = {"_step": history.step.num}
        for key, value in _numbers_and_texts(_pairs(history.item)):
            if isinstance(value, bool | int | float):
                row[key] = value
            elif not key.startswith("_"):
                self.left_out.add(key)
        self._history.append(row)
        if "_timestamp" in row:
            self._ended(row["_timestamp"])

    def _ended(self, time: float) -> None:
        """Record that the run was alive at `time`."""
        self.finished = max(self.finished or 0.0, time)

    def points(self) -> Iterator[Point]:
        for row in self._history:
            step, time = int(row["_step"]), row.get("_runtime")
            if time is None and self.started and "_timestamp" in row:
                time = row["_timestamp"] - self.started
            for key, value in row.items():
                if not key.startswith("_"):
                    yield Point(key, step, time, float(value))


def _update(config: dict[str, Any], record: Any) -> None:
    """Apply a record of changes to the nested `config`."""
    for path, value in _pairs(record.update):
        target = config
        for key in path[:-1]:
            if not isinstance(target.get(key), dict):
                target[key] = {}
            target = target[key]
        target[path[-1]] = value
    for item in record.remove:
        config.pop(item.key or "/".join(item.nested_key), None)


def _pairs(items: Iterable[Any]) -> list[tuple[tuple[str, ...], Any]]:
    return [(tuple(i.nested_key) or (i.key,), json.loads(i.value_json)) for i in items]


def _numbers_and_texts(pairs: list[tuple[tuple[str, ...], Any]]) -> Iterator[tuple[str, Any]]:
    """Yield (key with slashes, value) of every leaf; an image or a histogram is one leaf, its type."""
    objects: dict[tuple[str, ...], Any] = {
        path[:-1]: value for path, value in pairs if path[-1] == "_type"
    }
    for path, value in pairs:
        if not any(path[:length] in objects for length in range(1, len(path))):
            yield from _leaves(path, value)
    yield from (("/".join(path), f"({kind})") for path, kind in objects.items())


def _leaves(path: tuple[str, ...], value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and "_type" not in value:
        for key, item in value.items():
            yield from _leaves((*path, str(key)), item)
    else:
        yield "/".join(path), value


def _metadata_file(path: Path) -> dict[str, Any]:
    """Facts stored beside the log: host, user, commit. Empty without such a file."""
    if not path.exists():
        return {}
    with readable_errors(path, ValueError):
        found = json.loads(path.read_bytes())
    git = found.get("git") or {}
    facts = {
        "host": found.get("host"),
        "user": found.get("username"),
        "git_commit": git.get("commit"),
        "platform": found.get("os"),
        "python": found.get("python"),
        "argv": [found["program"], *found.get("args", [])] if found.get("program") else None,
    }
    return {key: value for key, value in facts.items() if value}


def _messages(path: Path, warnings: list[str]) -> Iterator[Record]:
    """Yield the messages of the log; a truncated or damaged end is skipped with a warning."""
    try:
        from google.protobuf.message import DecodeError
        from wandb.proto.wandb_internal_pb2 import Record
    except ImportError as error:
        raise MissingPackageError(
            "reading W&B runs needs the package wandb",
            'install it: uv pip install -e ".[wandb]"',
        ) from error
    consumed = len(_HEADER)
    for body, end in _records(path):
        with readable_errors(path, DecodeError):
            message = Record.FromString(body)
        yield message
        consumed = end
    if consumed < (size := path.stat().st_size):
        warnings.append(
            f"{path.name} is truncated or damaged: read the first {consumed:,} of {size:,} bytes"
        )


def _records(path: Path) -> Iterator[tuple[bytes, int]]:
    """Yield (record, end offset) until the end or the first damage."""
    with path.open("rb") as file:
        if file.read(len(_HEADER)) != _HEADER:
            raise ExperimentError(f"{path} is not a W&B log")
        body = b""
        while True:
            left = _BLOCK_BYTES - file.tell() % _BLOCK_BYTES
            if left < _RECORD.size:  # too small for a record: padding
                file.seek(left, 1)
                continue
            head = file.read(_RECORD.size)
            if len(head) < _RECORD.size:
                return
            checksum, length, kind = _RECORD.unpack(head)
            data = file.read(length)
            if len(data) < length or zlib.crc32(data, zlib.crc32(head[-1:])) != checksum:
                return
            body = data if kind in (_FULL, _FIRST) else body + data
            if kind in (_FULL, _LAST):
                yield body, file.tell()
