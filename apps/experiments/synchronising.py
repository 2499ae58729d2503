"""Exchange finished experiments with an object store shared by several machines."""

from __future__ import annotations

from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from common.experiments import store
from common.experiments.annotations import annotations_path
from common.experiments.log import read_lines
from common.experiments.parquet import read_parquet, record_checksum
from common.experiments.recovery import open_catalogue
from common.experiments.remote import ObjectStore, finished_places, upload, warn_taken
from common.experiments.run import enter_into_catalogue
from common.utils.files import atomic_path
from common.utils.logging import get_logger
from common.utils.manifest import identity, unique_name
from common.utils.paths import get_experiments_dir


class Synced(NamedTuple):
    """Names of the copied experiments."""

    uploaded: list[str]
    downloaded: list[str]


def sync_experiments() -> Synced:
    """Upload finished experiments missing in the object store, and download those missing here that
    were not deleted here. Experiments are identified by id: a taken name gets the start of the id
    appended, there and here.

    Raises ExperimentError without a usable URI, OSError if the object store cannot be reached.
    """
    remote = ObjectStore()
    there = remote.files()
    uploaded = upload(remote, there, finished_places())
    known = {place.id for place in open_catalogue().places()}
    deleted = deleted_ids() - known
    wanted = {key: file for file, key in sorted(there.items(), reverse=True) if key not in known}
    if left_out := sorted(Path(file).stem for key, file in wanted.items() if key in deleted):
        names = ", ".join(left_out)
        get_logger("experiments").warning(f"left out {names} of {remote.folder}: deleted here")
    downloaded = [
        name
        for key, file in sorted(wanted.items(), key=itemgetter(1))
        if key not in deleted and (name := _download(remote, file))
    ]
    if downloaded:
        enter_into_catalogue()
    return Synced(uploaded, downloaded)


def deleted_ids() -> set[str]:
    """Ids of experiments deleted here."""
    if not annotations_path().exists():
        return set()
    records = [record for record, _ in read_lines(annotations_path()) if record is not None]
    return {str(r.get("id")) for r in records if r["kind"] == "forget"}


def _download(remote: ObjectStore, file: str) -> str | None:
    """Store a copy; return its name, None if it is unreadable."""
    try:
        with TemporaryDirectory(dir=get_experiments_dir(), prefix=".sync-") as folder:
            copy = Path(folder) / "experiment.parquet"
            copy.write_bytes(remote.read(file))
            manifest, _ = read_parquet(copy)
            name, key = manifest["name"], identity(manifest)
            path = store.free_parquet_path(name, key)
            if store.log_path(name).exists():  # an unfinished run has the name
                path = store.parquet_path(unique_name(name, key))
            if path.stem != name:
                warn_taken(name, "here", path.stem)
            with atomic_path(path) as temporary:
                copy.replace(temporary)
                record_checksum(path, temporary, key)
    except ValueError as error:
        get_logger("experiments").warning(f"left out {file} of {remote.folder}: {error}")
        return None
    return path.stem
