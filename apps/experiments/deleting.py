"""Delete experiments, and unpack them."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from filelock import Timeout

from common.errors import ExperimentError, did_you_mean
from common.experiments import store
from common.experiments.annotations import annotations_path
from common.experiments.catalogue import Catalogue
from common.experiments.log import append_records
from common.experiments.names import exists
from common.experiments.packs import read_member, read_pack, replaced_packs, write_pack
from common.experiments.parquet import open_parquet, write_table
from common.experiments.recovery import open_catalogue
from common.experiments.rows import FIXED_COLUMNS, MANIFEST_COLUMN
from common.experiments.run_folders import run_folder
from common.experiments.store import free_parquet_path, lock_of, packs_dir, packs_lock
from common.utils.manifest import identity
from common.utils.paths import get_experiments_dir, get_runs_dir


def size_of(name: str) -> int:
    """Bytes of the run folder (checkpoints, samples) and of its files in the store, without packs."""
    folder, files, _ = _belongings(Catalogue(), name)
    paths = [get_experiments_dir() / file for file in files if "/" not in file]
    paths += [path for path in folder.rglob("*") if path.is_file()] if folder else []
    return sum(path.stat().st_size for path in paths if path.exists())


def _belongings(catalogue: Catalogue, name: str) -> tuple[Path | None, list[str], str | None]:
    """Return (run folder, files of the store, id) of an experiment. Unlisted ones (a claimed name,
    a damaged file, only a folder) have no id."""
    if places := catalogue.places("name = ?", name):
        (place,) = places
        copies = [
            c.file for c in catalogue.copies() if (c.original, c.id) == (place.file, place.id)
        ]
        return run_folder(catalogue, place.stored, place.id), [place.file, *copies], place.id
    folder = get_runs_dir() / name
    return (folder if folder.is_dir() else None), [f"{name}.parquet", f"{name}.jsonl"], None


def check_deletable(names: Sequence[str]) -> None:
    """Raise ExperimentError if one of them does not exist or is running."""
    catalogue = open_catalogue()
    for name in names:
        unlisted = store.is_name(name) and (exists(name) or (get_runs_dir() / name).is_dir())
        if name not in catalogue and not unlisted:
            known = catalogue.names()
            hint = did_you_mean(name, known) if known else "there are no experiments"
            raise ExperimentError(f"there is no experiment '{name}'", hint)
        if name in catalogue and catalogue.manifest(name)["status"] == "running":
            raise ExperimentError(f"experiment '{name}' is running", "stop it first")


def delete_experiments(names: Sequence[str]) -> None:
    """Delete experiments and their run folders. Raises like `check_deletable`, before deleting any."""
    check_deletable(names)
    with packs_lock():
        for name in names:
            folder, files, identifier = _belongings(open_catalogue(), name)
            try:
                with (lock := lock_of(name.partition("@")[0])).acquire(blocking=False):
                    if identifier is not None:
                        forget_experiments({identifier: name})
                    for file in files:
                        remove_file(file, identifier or "")
                    Path(lock.lock_file).unlink(missing_ok=True)
            except Timeout:
                raise ExperimentError(f"experiment '{name}' has just been started") from None
            if folder is not None and folder.is_symlink():
                folder.unlink()  # the target is on another disk, and may be shared
            elif folder is not None:
                shutil.rmtree(folder)
    open_catalogue()


def forget_experiments(names: Mapping[str, str]) -> None:
    """Record the deletion of {id: name}: a later experiment of that name does not inherit
    annotations, and the next synchronisation does not restore this one."""
    records = [{"kind": "forget", "name": name, "id": key} for key, name in names.items()]
    append_records(annotations_path(), records)


def remove_file(file: str, identifier: str) -> None:
    """Remove an experiment from one file of the store. The caller holds `packs_lock`."""
    path = get_experiments_dir() / file
    if path.parent == store.packs_dir():
        take_out(path, {identifier})
    else:
        path.unlink(missing_ok=True)


def unpack_experiment(name: str) -> Path:
    """Move an experiment from a pack to a separate file. Raises ExperimentError if it is not
    packed, or does not exist."""
    with packs_lock():
        place = open_catalogue().place(name)
        pack = get_experiments_dir() / place.file
        if pack.parent != packs_dir():
            raise ExperimentError(f"experiment '{name}' is in no pack", f"it is {place.file}")
        path = write_table(*read_member(pack, place.id), free_parquet_path(place.stored, place.id))
        take_out(pack, {place.id})
    return path


def take_out(pack: Path, ids: Collection[str]) -> None:
    """Rewrite the pack without the experiments `ids`. The caller holds `packs_lock`."""
    with open_parquet(pack) as file:
        fixed = (*FIXED_COLUMNS, MANIFEST_COLUMN)
        metrics = [name for name in file.schema_arrow.names if name not in fixed]
    for replaced in replaced_packs(pack):  # left behind by a crash: only `pack` marks it as void
        (packs_dir() / replaced).unlink(missing_ok=True)
    staying = (member for member in read_pack(pack) if identity(member[0]) not in ids)
    write_pack(staying, metrics, replaces=[pack.name])
    pack.unlink()
