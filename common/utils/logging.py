"""Structured logging: text for people, one JSON object a line with RESEARCH_LOG=json.

`get_logger(__name__).info("saved checkpoint", extra={"step": 200})`: the extra fields follow the
message as `step=200` in text and are keys of their own in JSON.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import datetime

from common.terminal import printable

_STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f"  {key}={value}" for key, value in _extra(record).items())
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        trace = f"\n{self.formatException(record.exc_info)}" if record.exc_info else ""
        return f"{printable(f'{level}{record.getMessage()}{fields}')}{trace}"


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created).astimezone().isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_extra(record),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


class _StderrHandler(logging.Handler):
    """Writes to the current `sys.stderr`, so that lines appear above a live progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


def _extra(record: logging.LogRecord) -> dict[str, object]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


def process_rank() -> int:
    """Rank among the processes of torchrun; 0 for a single process."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return 0
    rank = os.environ.get("RANK", "0")
    return int(rank) if rank.isdecimal() else 0  # join_processes reports an invalid value


def get_logger(name: str) -> logging.Logger:
    """The logger of a module; the first call attaches the shared handler."""
    root = logging.getLogger("research")
    if not root.handlers:
        handler = _StderrHandler()
        as_json = os.environ.get("RESEARCH_LOG") == "json"
        handler.setFormatter(_JsonFormatter() if as_json else _TextFormatter())
        root.addHandler(handler)
        # Only rank 0 logs at info level.
        root.setLevel(logging.ERROR if process_rank() else logging.INFO)
        root.propagate = False
    return root.getChild(name)
