"""Copies of finished experiments in an object store, shared by several machines.

With `RESEARCH_EXPERIMENTS_URI=s3://bucket/folder` (or gs://, abfs://, file:///mnt/lab) an
experiment is uploaded when it finishes, and `sync_experiments` copies missing ones in both
directions. Queries use only the local store, so nothing waits for the network. Credentials and
endpoints are those of Arrow's file systems: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
`s3://bucket/folder?endpoint_override=localhost:9000&scheme=http`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from common.errors import ExperimentError
from common.experiments import store
from common.experiments.catalogue import Place
from common.experiments.log import append_records, read_records
from common.experiments.packs import read_member
from common.experiments.parquet import read_footer, write_table
from common.experiments.recovery import open_catalogue
from common.experiments.rows import FOOTER_KEY
from common.utils.files import atomic_path
from common.utils.logging import get_logger
from common.utils.manifest import check_manifest, identity, unique_name
from common.utils.paths import get_experiments_dir

_VARIABLE = "RESEARCH_EXPERIMENTS_URI"


def remote_uri() -> str | None:
    """The URI of the object store; None if unset."""
    return os.environ.get(_VARIABLE) or None


def upload_finished(name: str) -> None:
    """Upload an experiment that just finished. A failure is logged as a warning."""
    try:
        remote = ObjectStore()
        upload(remote, remote.files(), finished_places("stored = ?", name))
    except (OSError, ExperimentError) as error:
        get_logger("experiments").warning(
            f"{name} was not copied to {remote_uri()}: {error}; "
            "later: tools/query_experiments.py --sync"
        )


def finished_places(where: str = "TRUE", *parameters: str) -> list[Place]:
    """Locations of finished experiments that match the SQL `where`."""
    return open_catalogue().places(
        f"file LIKE '%.parquet' AND status = 'finished' AND {where}", *parameters
    )


class ObjectStore:
    def __init__(self) -> None:
        uri = remote_uri()
        if uri is None:
            raise ExperimentError(f"{_VARIABLE} is not set", "for example s3://bucket/experiments")
        try:
            self.system, self.folder = fs.FileSystem.from_uri(uri)
        except (pa.ArrowException, ValueError) as error:
            raise ExperimentError(f"{_VARIABLE}={uri} cannot be used: {error}") from error

    def files(self) -> dict[str, str]:
        """{file: id of the experiment in it}. Files never change, so each id is read once."""
        selector = fs.FileSelector(self.folder, allow_not_found=True)
        found = {Path(info.path).name: info for info in self.system.get_file_info(selector)}
        known = self._read_ids()
        ids = {}
        for file, info in sorted(found.items()):
            name, ending = Path(file).stem.partition("@")[0], Path(file).suffix
            if ending != ".parquet" or not store.is_name(name):
                continue
            stamp = [info.size, info.mtime_ns]
            if (key := known.get((file, *stamp))) is None:
                try:
                    key = self._read_id(file)
                except ValueError as error:
                    get_logger("experiments").warning(f"left out {file} of {self.folder}: {error}")
                    continue
                self._remember(file, stamp, key)
            ids[file] = key
        return ids

    def _read_ids(self) -> dict[tuple[str, int, int], str]:
        path = _ids_path()
        records = [record for record, _ in read_records(path)] if path.exists() else []
        own = [r for r in records if r is not None and r["folder"] == self.folder]
        return {(r["file"], *r["stamp"]): r["id"] for r in own}

    def _remember(self, file: str, stamp: list[int], key: str) -> None:
        get_experiments_dir().mkdir(parents=True, exist_ok=True)
        facts = {"folder": self.folder, "file": file, "stamp": stamp, "id": key}
        append_records(_ids_path(), [{"kind": "remote", **facts}])

    def _read_id(self, file: str) -> str:
        """Raises ValueError if it is not an experiment of a store."""
        try:
            with self.system.open_input_file(f"{self.folder}/{file}") as content:
                manifest = read_footer(pq.ParquetFile(content), FOOTER_KEY)
        except pa.ArrowException as error:
            raise ValueError(str(error)) from error
        name = check_manifest(manifest)["name"]
        key = identity(manifest)
        if Path(file).stem not in (name, unique_name(name, key)):
            raise ValueError(f"it is a copy of '{name}'")
        return key

    def write(self, name: str, content: bytes) -> None:
        """Upload in one request, so that a broken connection leaves no partial file."""
        target = f"{self.folder}/{name}.parquet"
        if self.system.type_name != "local":
            with self.system.open_output_stream(target) as stream:
                stream.write(content)
            return
        with atomic_path(Path(target)) as temporary:
            temporary.write_bytes(content)

    def read(self, file: str) -> bytes:
        """The content of a file."""
        with self.system.open_input_stream(f"{self.folder}/{file}") as stream:
            content: bytes = stream.read()
        return content


def _ids_path() -> Path:
    return get_experiments_dir() / store.REMOTE


def upload(remote: ObjectStore, there: dict[str, str], places: Iterable[Place]) -> list[str]:
    """Upload experiments missing in `there` ({file: id}), and extend it. Never replaces a file."""
    uploaded = []
    with TemporaryDirectory() as folder:
        for place in places:
            if place.id in there.values():
                continue
            path = get_experiments_dir() / place.file
            if path.parent == store.packs_dir():
                member = read_member(path, place.id)
                path = write_table(*member, Path(folder) / "experiment.parquet")
            names = (place.stored, unique_name(place.stored, place.id))
            name = next(name for name in names if f"{name}.parquet" not in there)
            if name != place.stored:
                warn_taken(place.stored, f"in {remote.folder}", name)
            remote.write(name, path.read_bytes())
            there[f"{name}.parquet"] = place.id
            uploaded.append(name)
    return uploaded


def warn_taken(name: str, where: str, other: str) -> None:
    """Log that an experiment is stored under `other`, because `name` is taken."""
    message = f"another experiment '{name}' is already {where}: this one is stored as '{other}'"
    get_logger("experiments").warning(message)
