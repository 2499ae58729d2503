"""The SHA-256 of every Parquet file as it was written, so that a file that has changed since is found.

`_checksums.jsonl`, beside the experiments, is a log as those of runs are (see log.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from common.experiments.log import append_records, read_records
from common.experiments.store import CHECKSUMS
from common.utils.files import sha256_of
from common.utils.paths import get_experiments_dir


def checksums_path() -> Path:
    return get_experiments_dir() / CHECKSUMS


class Written(NamedTuple):
    """What a file was when it was written; `id` of the experiment in it, where that was said."""

    sha256: str
    id: str | None


def record_checksum(path: Path, written: Path, identifier: str | None = None) -> None:
    """Remember that what stands in `written` is to stand in `path`, if that is in the store."""
    if not path.is_relative_to(get_experiments_dir()):
        return
    file = str(path.relative_to(get_experiments_dir()))
    record = {"kind": "written", "file": file, "sha256": sha256_of(written), "id": identifier}
    append_records(checksums_path(), [record])


def read_checksums() -> dict[str, Written]:
    """{file of the store: what it must be}; of a file from elsewhere nothing is known."""
    if not checksums_path().exists():
        return {}
    records = [record for record, _ in read_records(checksums_path()) if record is not None]
    return {record["file"]: Written(record["sha256"], record.get("id")) for record in records}
