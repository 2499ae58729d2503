"""The SHA-256 of every Parquet file as it was written, so that a file that has changed since is found.

`_checksums.jsonl`, beside the experiments, is a log as those of runs are (see log.py).
"""

from __future__ import annotations

from pathlib import Path

from common.utils.experiment_storage.log import append_records, read_records
from common.utils.files import sha256_of
from common.utils.paths import get_experiments_dir


def checksums_path() -> Path:
    return get_experiments_dir() / "_checksums.jsonl"


def record_checksum(path: Path, written: Path) -> None:
    """Remember that what stands in `written` is to stand in `path`, if that is in the store."""
    if not path.is_relative_to(get_experiments_dir()):
        return
    file = str(path.relative_to(get_experiments_dir()))
    append_records(
        checksums_path(), [{"kind": "written", "file": file, "sha256": sha256_of(written)}]
    )


def read_checksums() -> dict[str, str]:
    """{file of the store: the SHA-256 it must have}; of a file from elsewhere there is none."""
    if not checksums_path().exists():
        return {}
    records = [record for record, _ in read_records(checksums_path()) if record is not None]
    return {record["file"]: record["sha256"] for record in records}
