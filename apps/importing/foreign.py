"""What a reader of another tracker's data hands over: one ForeignRun per run, read when it is needed."""

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
    """One run, read.

    `facts` become the manifest; `name` is the tracker's own and need not fit our store. `rows` are
    rows of the log (see `rows.make_row`). `warnings` say what was changed or left out.
    """

    facts: dict[str, Any]
    rows: list[dict[str, Any]]
    warnings: list[str]


class ForeignRun(ABC):
    """A run of another tracker. Making one reads little; `read` takes the memory of one run."""

    kind: str

    def __init__(self, path: Path, identifier: str = "") -> None:
        self.path = path
        self.identifier = identifier  # the tracker's own, "" where it has none

    @property
    def label(self) -> str:
        """How messages call it."""
        return f"{self.path} ({self.identifier})" if self.identifier else str(self.path)

    @abstractmethod
    def fingerprint(self) -> str:
        """The same for the same content, wherever it lies. Raises ExperimentError or OSError."""

    @abstractmethod
    def read(self) -> Content:
        """Raises ExperimentError or OSError when nothing of the run can be read."""


@contextmanager
def readable_errors(what: object, *errors: type[Exception]) -> Iterator[None]:
    """Turn what a damaged file makes a library raise into one line that names it."""
    try:
        yield
    except errors as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ExperimentError(f"cannot read {what}: {reason[0]}") from error


def fingerprint_of_files(paths: Sequence[Path]) -> str:
    """Of the contents alone: names and times change when files are copied."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def iso_time(seconds: object) -> str | None:
    """ISO 8601 of seconds since 1970 in UTC; None for what is no moment."""
    if not isinstance(seconds, int | float) or not math.isfinite(seconds) or seconds <= 0:
        return None
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    except (OverflowError, ValueError, OSError):
        return None


def parse_text(text: str) -> object:
    """The number, bool or None that `text` spells exactly, else `text`: 1.10 may be a version."""
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
    """`value` as JSON that every reader takes: NaN and infinities as texts, no broken Unicode."""
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
    """`text` as the store can hold it (see `is_text`)."""
    return text.replace("\0", "?").encode("utf-8", "replace").decode()
