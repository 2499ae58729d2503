"""Which files of the store count at this moment, while others are written, packed and deleted."""

from __future__ import annotations

import os
from pathlib import Path

from common.experiments.store import CHECKSUMS, REMOTE, packs_dir
from common.utils.paths import get_experiments_dir
from common.utils.plain import is_text

Stamp = tuple[int, int]  # (size, mtime_ns)
_NO_RUNS = (CHECKSUMS, REMOTE)  # logs that say nothing of a run


def scan_store() -> dict[str, Stamp]:
    """{file: (size, mtime_ns)} of the packs, logs, Parquet files and annotations of the store."""
    directory = get_experiments_dir()
    while True:
        packs = _list(packs_dir(), ".parquet")
        # The logs first: a run that is finished in between is seen as its log, its file, or both.
        logs = _list(directory, ".jsonl")
        loose = _list(directory, ".parquet")
        if packs == _list(packs_dir(), ".parquet"):  # otherwise something may have moved past us
            break
    logs = [file for file in logs if file not in _NO_RUNS]
    files = [*(f"packs/{pack}" for pack in packs), *loose, *logs]
    return {file: _stamp(f"{directory}/{file}") for file in files}


def _stamp(path: str) -> Stamp:
    try:
        status = os.stat(path)  # noqa: PTH116 (three times as fast)
    except OSError:
        status = os.lstat(path)  # a link that leads nowhere: reading it will say so
    return status.st_size, status.st_mtime_ns


def _list(directory: Path, ending: str) -> list[str]:
    try:
        files = os.listdir(directory)  # noqa: PTH208 (names are enough)
    except FileNotFoundError:
        return []
    found = [file for file in files if file.endswith(ending) and file[0] != "."]
    # A name that is no text (undecodable bytes) is none of ours, and SQLite could not hold it.
    return sorted(file for file in found if file.isascii() or is_text(file))
