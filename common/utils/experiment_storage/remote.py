"""Finished experiments in an object store, shared by several machines.

`RESEARCH_EXPERIMENTS_URI=s3://bucket/folder` (or gs://, abfs://, file:///mnt/lab): an experiment is
copied there when it is finished, and `sync_experiments` brings what is missing on either side. Every
question is still answered from the local store, so nothing waits for the network.
Credentials and endpoints are those of Arrow's file systems: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
`s3://bucket/folder?endpoint_override=localhost:9000&scheme=http`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pyarrow as pa
from pyarrow import fs

from common.errors import ExperimentError
from common.utils.experiment_storage import store
from common.utils.experiment_storage.catalogue import Catalogue
from common.utils.experiment_storage.checksums import record_checksum
from common.utils.experiment_storage.exports import read_members
from common.utils.experiment_storage.parquet import read_parquet, write_table
from common.utils.files import atomic_path
from common.utils.logging import get_logger
from common.utils.paths import get_experiments_dir

_VARIABLE = "RESEARCH_EXPERIMENTS_URI"


class Synced(NamedTuple):
    """The names of the experiments that were copied."""

    uploaded: list[str]
    downloaded: list[str]


def remote_uri() -> str | None:
    return os.environ.get(_VARIABLE) or None


def upload_finished(name: str) -> None:
    """Copy an experiment that was just finished. A network that fails is told, and harms nothing."""
    try:
        _upload(_Remote(), [name])
    except (OSError, ExperimentError) as error:
        get_logger("experiments").warning(
            f"{name} was not copied to {remote_uri()}: {error}; "
            "later: tools/query_experiments.py --sync"
        )


def sync_experiments() -> Synced:
    """Upload the finished experiments that the object store lacks, download those that are not here.

    Raises ExperimentError when there is no usable URI, OSError when the object store cannot be
    reached.
    """
    remote = _Remote()
    there = remote.names()
    overview = Catalogue().overview(archived=True)
    finished = [run.name for run in overview if run.status == "finished"]
    here = {run.name for run in overview}
    uploaded = _upload(remote, [name for name in finished if name not in there])
    downloaded = [name for name in sorted(there - here) if _download(remote, name)]
    if downloaded:
        store.enter_into_catalogue()
    return Synced(uploaded, downloaded)


class _Remote:
    def __init__(self) -> None:
        uri = remote_uri()
        if uri is None:
            raise ExperimentError(f"{_VARIABLE} is not set", "for example s3://bucket/experiments")
        try:
            self.system, self.folder = fs.FileSystem.from_uri(uri)
        except (pa.ArrowException, ValueError) as error:
            raise ExperimentError(f"{_VARIABLE}={uri} cannot be used: {error}") from error

    def names(self) -> set[str]:
        selector = fs.FileSelector(self.folder, allow_not_found=True)
        files = (Path(info.path) for info in self.system.get_file_info(selector))
        return {f.stem for f in files if f.suffix == ".parquet" and store.is_name(f.stem)}

    def write(self, name: str, content: bytes) -> None:
        """All at once, so that a cut connection leaves nothing under the name. Raises ExperimentError
        when another machine has used the name: nothing is ever replaced."""
        target = f"{self.folder}/{name}.parquet"
        if self.system.get_file_info(target).type != fs.FileType.NotFound:
            raise ExperimentError(f"another experiment '{name}' is there already")
        if self.system.type_name != "local":
            with self.system.open_output_stream(target) as stream:
                stream.write(content)
            return
        with atomic_path(Path(target)) as temporary:
            temporary.write_bytes(content)

    def read(self, name: str) -> bytes:
        with self.system.open_input_stream(f"{self.folder}/{name}.parquet") as stream:
            content: bytes = stream.read()
        return content


def _upload(remote: _Remote, names: Iterable[str]) -> list[str]:
    uploaded = []
    packed = []
    for name in names:
        path = store.parquet_path(name)
        if path.exists():
            remote.write(name, path.read_bytes())
            uploaded.append(name)
        else:
            packed.append(name)
    with TemporaryDirectory() as folder:
        for manifest, table in read_members(packed) if packed else ():
            path = write_table(manifest, table, Path(folder) / "experiment.parquet")
            remote.write(manifest["name"], path.read_bytes())
            uploaded.append(manifest["name"])
    return uploaded


def _download(remote: _Remote, name: str) -> bool:
    """Store a copy, when it is an experiment and nobody here has taken its name in between."""
    try:
        store.claim_name(name)
    except ExperimentError:
        return False
    path = get_experiments_dir() / f"{name}.parquet"
    try:
        with atomic_path(path) as temporary:
            temporary.write_bytes(remote.read(name))
            manifest, _ = read_parquet(temporary)
            if manifest.get("name") != name:
                raise ValueError(f"it is a copy of '{manifest.get('name')}'")
            record_checksum(path, temporary)
    except ValueError as error:
        get_logger("experiments").warning(f"left out {name}.parquet of {remote.folder}: {error}")
        return False
    finally:
        store.log_path(name).unlink(missing_ok=True)
    return True
