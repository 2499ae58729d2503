"""Rename an experiment with its rows, run folder, tags and note.

Experiments are identified by id, so the new and the old file contain the same experiment, which
counts once while both exist. Hence this order is safe: record the renaming in `_annotations.jsonl`,
write the new file, move the folder, remove the old file. After a kill, `rename_experiment` with the
same names, or `--check`, completes it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from filelock import Timeout

from apps.experiments.deleting import remove_file
from common.errors import ExperimentError
from common.experiments import store
from common.experiments.annotations import annotations_path
from common.experiments.catalogue import Catalogue, Place
from common.experiments.log import append_records, read_records
from common.experiments.names import next_name
from common.experiments.packs import read_member
from common.experiments.parquet import Member, read_parquet, record_checksum, with_name, write_table
from common.experiments.recovery import open_catalogue
from common.experiments.run_folders import folder_id, run_folder
from common.experiments.store import lock_of, packs_lock
from common.utils.files import fsync_dir, fsync_file, write_json_atomic
from common.utils.manifest import ID, identity
from common.utils.paths import get_experiments_dir, get_runs_dir


class Renaming(NamedTuple):
    id: str
    old: str
    new: str


def rename_experiment(name: str, new: str) -> None:
    """Rename the experiment `name` (or `<name>@<id>` for duplicate names) to `new`.

    Raises ExperimentError for an unknown or running experiment, and a taken name.
    """
    store.check_name(new)
    with packs_lock():
        catalogue = open_catalogue()
        begun = next((r for r in begun_renamings() if (r.old, r.new) == (name, new)), None)
        if begun is not None and name not in catalogue and catalogue.places("id = ?", begun.id):
            renaming = begun
        else:
            place = catalogue.place(name)
            if catalogue.manifest(name)["status"] == "running":
                raise ExperimentError(f"experiment '{name}' is running", "stop it first")
            renaming = Renaming(place.id, name, new)
            if name == new:
                raise ExperimentError(f"it is already named '{name}'")
        _check_free(catalogue, renaming)
        finish_renaming(renaming)


def begun_renamings() -> list[Renaming]:
    """All renamings ever started, latest first."""
    if not annotations_path().exists():
        return []
    records = [record for record, _ in read_records(annotations_path()) if record is not None]
    found = [Renaming(r["id"], r["name"], r["new"]) for r in records if r["kind"] == "rename"]
    return found[::-1]


def finish_renaming(renaming: Renaming) -> None:
    """Complete a renaming. The caller holds `packs_lock`."""
    catalogue = Catalogue()
    places = catalogue.places("id = ?", renaming.id)
    place = next((p for p in places if renaming.old in (p.name, p.stored)), places[0])
    files = {place.file, *_copies(catalogue, place)}
    target = next((file for file in files if Path(file).stem == renaming.new), None)
    with _locked(files):
        if target is None:
            record = {"kind": "rename", "id": place.id, "name": renaming.old, "new": renaming.new}
            append_records(annotations_path(), [record])
            target = _write_again(place, renaming.new)
        _move_run_folder(catalogue, renaming)
        for file in files - {target}:
            remove_file(file, place.id)
    open_catalogue()


def _copies(catalogue: Catalogue, place: Place) -> list[str]:
    return [c.file for c in catalogue.copies() if (c.original, c.id) == (place.file, place.id)]


def _check_free(catalogue: Catalogue, renaming: Renaming) -> None:
    own = {place.file for place in catalogue.places("id = ?", renaming.id)}
    own |= {copy.file for copy in catalogue.copies() if copy.id == renaming.id}
    files = {f"{renaming.new}.parquet", f"{renaming.new}.jsonl"} - own
    others = [
        place for place in catalogue.places("stored = ?", renaming.new) if place.file not in own
    ]
    if others or any((get_experiments_dir() / file).exists() for file in files):
        raise ExperimentError(
            f"an experiment named '{renaming.new}' already exists",
            f"choose another name, for example '{next_name(renaming.new)}'",
        )
    folder = get_runs_dir() / renaming.new
    if folder.exists() and folder_id(folder) != renaming.id:
        raise ExperimentError(f"the run folder {folder} exists", "choose another name, or move it")


@contextmanager
def _locked(files: set[str]) -> Iterator[None]:
    """Hold the lock of the log among `files`, so that no process resumes it meanwhile."""
    logs = [Path(file).stem for file in files if file.endswith(".jsonl")]
    if not logs:
        yield
        return
    lock = lock_of(logs[0])
    try:
        with lock.acquire(blocking=False):
            yield
            Path(lock.lock_file).unlink(missing_ok=True)
    except Timeout:
        raise ExperimentError(f"experiment '{logs[0]}' is running", "stop it first") from None


def _write_again(place: Place, name: str) -> str:
    """Write the experiment to a file with the unused name `name`; return the file name."""
    source = get_experiments_dir() / place.file
    ending = ".jsonl" if source.suffix == ".jsonl" else ".parquet"
    target = get_experiments_dir() / f"{name}{ending}"
    temporary = get_experiments_dir() / f".{name}{ending}.{os.getpid()}.tmp"
    try:
        if ending == ".jsonl":
            temporary.write_bytes(_renamed_log(source, name))
            fsync_file(temporary)
        else:
            manifest, table = with_name(_read(source, place.id), name)
            write_table(manifest | {ID: place.id}, table, temporary)
            record_checksum(target, temporary, place.id)
        _place(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return target.name


def _read(path: Path, identifier: str) -> Member:
    return read_member(path, identifier) if path.parent == store.packs_dir() else read_parquet(path)


def _renamed_log(path: Path, name: str) -> bytes:
    """Copy the log with another name in its first record; all other lines, even damaged ones, are unchanged."""
    from common.experiments.log import encode_record

    end = next(end for record, end in read_records(path) if record and record["kind"] == "start")
    content = path.read_bytes()
    begin = content.rfind(b"\n", 0, end - 1) + 1
    manifest = json.loads(content[begin:end].partition(b" ")[2])["manifest"]
    manifest |= {"name": name, ID: identity(manifest)}
    return content[:begin] + encode_record({"kind": "start", "manifest": manifest}) + content[end:]


def _place(temporary: Path, target: Path) -> None:
    """Publish a file under its name. Raises ExperimentError if the name was taken meanwhile."""
    taken = ExperimentError(f"an experiment named '{target.stem}' already exists")
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise taken from None
    except OSError:  # a file system without links
        if target.exists():
            raise taken from None
        temporary.replace(target)
    fsync_dir(target.parent)
    other = store.log_path(target.stem)
    if target != other and other.exists():
        target.unlink()
        raise taken


def _move_run_folder(catalogue: Catalogue, renaming: Renaming) -> None:
    target = get_runs_dir() / renaming.new
    before = run_folder(catalogue, renaming.old.partition("@")[0], renaming.id)
    if before is not None and not target.exists():
        before.rename(target)
        fsync_dir(target.parent)
    if folder_id(target) == renaming.id:
        manifest = json.loads((target / "manifest.json").read_text(encoding="utf-8"))
        facts = {"name": renaming.new, ID: renaming.id}
        if manifest | facts != manifest:
            write_json_atomic(target / "manifest.json", manifest | facts)
