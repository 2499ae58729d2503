"""TensorBoard: each folder with event files is a run.

In two layouts subfolders are parts of the run above, and are merged: Keras and Estimators write one
folder per split (`train/`, `validation/`), and PyTorch's `add_hparams` writes the parameters to a
folder named by time (`1700000000.123/`).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.importing.foreign import (
    Content,
    ForeignRun,
    fingerprint_of_files,
    iso_time,
    readable_errors,
)
from apps.importing.tags import SPLIT_OF_WORD, Point, rows_of_points
from common.errors import ExperimentError, MissingPackageError

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

_FRAME_BYTES = 16  # around each record: its length (8) and two checksums (4 each)
_EVENT_FILE = re.compile(r"tfevents\.(\d+)\.(.+?)(\.\d+\.\d+(\.v2)?)?$")
_HPARAMS_FOLDER = re.compile(r"\d{9,}(\.\d+)?")


def is_event_file(name: str) -> bool:
    return "tfevents" in name and not name.endswith(".profile-empty")


def runs_of_folders(root: Path, event_files: Mapping[Path, list[Path]]) -> list[ForeignRun]:
    """One run per folder; parts of the run above are merged into it."""
    siblings: dict[Path, set[str]] = defaultdict(set)
    for folder in event_files:
        if folder.name.lower() in SPLIT_OF_WORD:
            siblings[folder.parent].add(folder.name)
    parts: dict[Path, list[tuple[str, list[Path]]]] = defaultdict(list)
    for folder, files in event_files.items():
        above = folder.parent
        has_run_above = above in event_files and folder != root
        is_split = folder.name.lower() in SPLIT_OF_WORD
        # A single folder `test` may be a run of that name.
        if folder != root and is_split and (has_run_above or len(siblings[above]) > 1):
            parts[above].append((folder.name.lower(), files))
        elif has_run_above and _HPARAMS_FOLDER.fullmatch(folder.name):
            parts[above].append(("", files))
        else:
            parts[folder].append(("", files))
    return [
        TensorBoardRun(folder, root.name if folder == root else str(folder.relative_to(root)), part)
        for folder, part in sorted(parts.items())
    ]


class TensorBoardRun(ForeignRun):
    """`parts`: (split of the folder or "", its event files)."""

    kind = "tensorboard"

    def __init__(self, path: Path, name: str, parts: list[tuple[str, list[Path]]]) -> None:
        super().__init__(path)
        self._name = name
        self._parts = [(split, sorted(files, key=_age)) for split, files in parts]

    def fingerprint(self) -> str:
        return fingerprint_of_files([path for _, files in self._parts for path in files])

    def read(self) -> Content:
        reader = _Reader()
        for split, files in self._parts:
            reader.read_part(split, files)
        points = reader.points
        if not points and not reader.config:
            raise ExperimentError(f"{self.path} has no scalars")
        times = [time for point in points if (time := point.time)]
        started = min(reader.first_times, default=min(times, default=0.0))
        rows, warnings = rows_of_points(
            point._replace(time=None if point.time is None else point.time - started)
            for point in points
        )
        host = _EVENT_FILE.search(self._parts[0][1][0].name)
        facts = {
            "name": self._name,
            "status": reader.status or ("interrupted" if reader.warnings else "finished"),
            "started": iso_time(started),
            "finished": iso_time(max(times, default=None)),
            "config": reader.config,
            "host": host[2] if host else None,
        }
        return Content(facts, rows, reader.warnings + warnings)


class _Reader:
    """Gathers the points of a run, `time` being the wall time in seconds since 1970."""

    def __init__(self) -> None:
        self.points: list[Point] = []
        self.config: dict[str, Any] = {}
        self.status = ""
        self.first_times: list[float] = []
        self.warnings: list[str] = []
        self._plugins: dict[str, str] = {}  # by tag: TensorBoard writes it once

    def read_part(self, split: str, files: list[Path]) -> None:
        before = self.points
        self.points = []
        self._plugins = {}
        for path in files:
            for number, event in enumerate(self._events(path)):
                if number == 0 and event.wall_time > 0:
                    self.first_times.append(event.wall_time)
                if event.HasField("session_log") and event.session_log.status == 1:  # START
                    # The writer was restarted at this step: as in TensorBoard, later points of the
                    # killed process do not count.
                    self.points = [point for point in self.points if point.step < event.step]
                for value in event.summary.value:
                    self._add(split, event, value)
        self.points = before + self.points

    def _events(self, path: Path) -> Iterator[Event]:
        try:
            from google.protobuf.message import DecodeError
            from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
            from tensorboard.compat.proto.event_pb2 import Event
        except ImportError as error:
            raise MissingPackageError(
                "reading TensorBoard's event files needs the package tensorboard",
                'install it: uv pip install -e ".[tensorboard]"',
            ) from error
        size = path.stat().st_size
        consumed = 0
        # The loader stops silently at a truncated or damaged record; compare sizes.
        for record in RawEventFileLoader(str(path)).Load():
            consumed += len(record) + _FRAME_BYTES
            with readable_errors(path, DecodeError):
                event = Event.FromString(record)
            yield event
        if consumed < size:
            self.warnings.append(
                f"{path.name} is truncated or damaged: read the first {consumed:,} of {size:,} bytes"
            )

    def _add(self, split: str, event: Event, value: Summary.Value) -> None:
        plugin = value.metadata.plugin_data.plugin_name
        plugin = self._plugins.setdefault(value.tag, plugin)
        if plugin == "hparams":
            self._add_hparams(value.metadata.plugin_data.content)
            return
        number = _scalar(value, plugin)
        if number is not None:
            tag = f"{split}/{value.tag}" if split else value.tag
            self.points.append(Point(tag, event.step, event.wall_time or None, number))

    def _add_hparams(self, content: bytes) -> None:
        from google.protobuf.message import DecodeError
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

        with readable_errors("the hparams", DecodeError):
            data = HParamsPluginData.FromString(content)
        for name, value in data.session_start_info.hparams.items():
            kind = value.WhichOneof("kind")
            self.config[name] = _whole(getattr(value, kind)) if kind else None
        if data.HasField("session_end_info"):
            # STATUS_SUCCESS, STATUS_FAILURE of tensorboard.plugins.hparams.api.Status
            self.status = {1: "finished", 2: "failed"}.get(data.session_end_info.status, "")


def _scalar(value: Summary.Value, plugin: str) -> float | None:
    """The number of a value, in the old format (`simple_value`) or the new one (a tensor)."""
    if value.HasField("simple_value"):
        return float(value.simple_value)
    if plugin != "scalars" or not value.HasField("tensor"):
        return None
    from tensorboard.util.tensor_util import make_ndarray

    try:
        return float(make_ndarray(value.tensor).item())
    except (TypeError, ValueError):  # text, or more than one number
        return None


def _whole(value: object) -> object:
    """Hparams store every number as a double: convert 8.0, which was probably 8."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _age(path: Path) -> tuple[list[int], str]:
    """Sort key for the files of a run: time and counter in their names."""
    numbers = [int(number) for number in re.findall(r"\d+", path.name.partition("tfevents")[2])]
    return numbers, path.name
