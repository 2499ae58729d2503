"""TensorBoard: each folder with event files is a run.

Parts of one run lie in folders of their own in two layouts, and are joined to the run above: Keras
and Estimators write one folder per split (`train/`, `validation/`), and PyTorch's `add_hparams`
writes the parameters into a folder named by the time (`1700000000.123/`).
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
    """One run per folder; those that are parts of the run above are joined to it."""
    siblings: dict[Path, set[str]] = defaultdict(set)
    for folder in event_files:
        if folder.name.lower() in SPLIT_OF_WORD:
            siblings[folder.parent].add(folder.name)
    parts: dict[Path, list[tuple[str, list[Path]]]] = defaultdict(list)
    for folder, files in event_files.items():
        above = folder.parent
        has_run_above = above in event_files and folder != root
        is_split = folder.name.lower() in SPLIT_OF_WORD
        # A lone folder `test` may be somebody's run of that name.
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
    """`parts`: (the split that its folder names or "", its event files)."""

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
            raise ExperimentError(f"{self.path} holds no scalars")
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
        self._plugins: dict[str, str] = {}  # of a tag: TensorBoard writes it once

    def read_part(self, split: str, files: list[Path]) -> None:
        before = self.points
        self.points = []
        self._plugins = {}
        for path in files:
            for number, event in enumerate(self._events(path)):
                if number == 0 and event.wall_time > 0:
                    self.first_times.append(event.wall_time)
                if event.HasField("session_log") and event.session_log.status == 1:  # START
                    # The writer was restarted at this step: what a lost process wrote after it
                    # does not count, as in TensorBoard itself.
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
        # The loader ends without a word at a record that is cut or damaged; the size tells.
        for record in RawEventFileLoader(str(path)).Load():
            consumed += len(record) + _FRAME_BYTES
            with readable_errors(path, DecodeError):
                event = Event.FromString(record)
            yield event
        if consumed < size:
            self.warnings.append(
                f"{path.name} is cut or damaged: read the first {consumed:,} of {size:,} bytes"
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
    """The number of a value, written the old way (`simple_value`) or the new one (a tensor)."""
    if value.HasField("simple_value"):
        return float(value.simple_value)
    if plugin != "scalars" or not value.HasField("tensor"):
        return None
    from tensorboard.util.tensor_util import make_ndarray

    try:
        return float(make_ndarray(value.tensor).item())
    except (TypeError, ValueError):  # a text, or more than one number
        return None


def _whole(value: object) -> object:
    """Hparams keep every number as a double: 8.0 was written as 8 more often than not."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _age(path: Path) -> tuple[list[int], str]:
    """Sorts the files of a run by the time and the counter in their names."""
    numbers = [int(number) for number in re.findall(r"\d+", path.name.partition("tfevents")[2])]
    return numbers, path.name
