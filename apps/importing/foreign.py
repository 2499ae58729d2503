"""The interface of readers of other trackers: one ForeignRun per run, read on demand."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from common.errors import ExperimentError


class Content(NamedTuple):
    """The content of a run.

    `facts` become the manifest; `name` is the tracker's and need not be valid here. `rows` are rows
    of the log (see `rows.make_row`). `warnings` name changes and omissions.
    """

    facts: dict[str, Any]
    rows: list[dict[str, Any]]
    warnings: list[str]


class ForeignRun(ABC):
    """A run of another tracker. Construction reads little; `read` needs memory for one run."""

    kind: str

    def __init__(self, path: Path, identifier: str = "") -> None:
        self.path = path
        self.identifier = identifier  # the tracker's id, or ""

    @property
    def label(self) -> str:
        """Its name in messages."""
        return f"{self.path} ({self.identifier})" if self.identifier else str(self.path)

    @abstractmethod
    def fingerprint(self) -> str:
        """Hash of the content, independent of location. Raises ExperimentError or OSError."""

    @abstractmethod
    def read(self) -> Content:
        """Read the run. Raises ExperimentError or OSError if nothing is readable."""


@contextmanager
def readable_errors(what: object, *errors: type[Exception]) -> Iterator[None]:
    """Turn errors of a library on a damaged file into an ExperimentError that names the file."""
    try:
        yield
    except errors as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ExperimentError(f"cannot read {what}: {reason[0]}") from error


def fingerprint_of_files(paths: Sequence[Path]) -> str:
    """Hash of contents only: names and times change when files are copied."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def iso_time(seconds: object) -> str | None:
    """Format seconds since 1970 as ISO 8601 in UTC; None if invalid."""
    if not isinstance(seconds, int | float) or not math.isfinite(seconds) or seconds <= 0:
        return None
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    except (OverflowError, ValueError, OSError):
        return None


def parse_text(text: str) -> object:
    """Parse `text` as a number, bool or None if that is lossless, else keep it: 1.10 may be a version."""
    constants: dict[str, object] = {"True": True, "False": False, "None": None}
    if text in constants:
        return constants[text]
    for kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            continue
        if repr(value) == text and math.isfinite(value):
            return value
    return text


def tidy_json(value: Any) -> Any:
    """Convert `value` to strict JSON: NaN and infinities as strings, valid Unicode."""
    if isinstance(value, dict):
        return {tidy_text(str(key)): tidy_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [tidy_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    return tidy_text(str(value))


def tidy_text(text: str) -> str:
    """Escape `text` for the store (see `is_text`)."""
    return text.replace("\0", "?").encode("utf-8", "replace").decode()
