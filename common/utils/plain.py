"""Convert values of other libraries to JSON, and validate text for the store."""

from __future__ import annotations

import enum
import numbers
import os
from collections.abc import Mapping, Sequence, Set
from datetime import date, time, timedelta
from typing import Any

NO_TEXT = "remove invalid characters (NUL, lone surrogates)"
_MOST_LEVELS = 100  # deeper values probably contain themselves


def to_plain(value: Any, where: str = "it", levels: int = _MOST_LEVELS) -> Any:
    """Convert `value` to numbers, strings, lists and dictionaries for JSON.

    Scalars and arrays of NumPy and PyTorch become numbers and lists, paths strings, dates and times
    ISO 8601, durations seconds, sets sorted lists. NaN and infinities are kept, as in Python's
    JSON. Raises ValueError for anything else; `where` names the value in the message.
    """
    if value is None or type(value) in (bool, int, str):
        return value
    if levels == 0:
        raise ValueError(f"{where} contains itself, or is more than {_MOST_LEVELS} levels deep")
    if isinstance(value, enum.Enum):
        return to_plain(value.value, where, levels - 1)
    if isinstance(value, bool | int | str):  # subclasses, whose str() may differ
        kind = next(kind for kind in (bool, int, str) if isinstance(value, kind))
        return kind.__str__(value) if kind is str else kind(value)
    if isinstance(value, Mapping):
        return {
            _key(key, where): to_plain(item, f"{where}.{key}", levels - 1)
            for key, item in value.items()
        }
    if isinstance(value, Set):
        plain = [to_plain(item, where, levels - 1) for item in value]
        return sorted(plain, key=lambda item: (str(type(item)), str(item)))
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return [to_plain(item, f"{where}[{i}]", levels - 1) for i, item in enumerate(value)]
    return _plain_object(value, where, levels - 1)


def _plain_object(value: Any, where: str, levels: int) -> Any:
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    if isinstance(value, date | time):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if type(value).__name__ == "datetime64":  # of NumPy, whose `tolist` is nanoseconds
        return str(value)
    # Arrays and scalars of PyTorch and NumPy, without importing either.
    if hasattr(value, "tolist") and (plain := value.tolist()) is not value:
        return to_plain(plain, where, levels)
    if hasattr(value, "model_dump"):  # a configuration of ours
        return to_plain(value.model_dump(mode="json"), where, levels)
    raise ValueError(f"{where} cannot be converted to JSON: {value!r}")


def _key(key: Any, where: str) -> str:
    plain = to_plain(key, f"a key of {where}")
    if isinstance(plain, list | dict):
        raise ValueError(f"a key of {where} must be a string, got {key!r}")
    return plain if isinstance(plain, str) else str(plain)


def is_text(value: str) -> bool:
    """Whether Parquet, SQLite and DuckDB can all store it: no NUL, no half of a surrogate pair."""
    return value.isprintable() or (
        "\0" not in value and value.encode(errors="ignore").decode() == value
    )


def clean_text(value: str) -> str:
    """Escape invalid characters of `value`: the byte 0xe9 that is not UTF-8 as `\\udce9`."""
    if is_text(value):
        return value
    return value.replace("\0", "\\x00").encode(errors="backslashreplace").decode()
