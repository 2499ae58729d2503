"""Deleting experiments for good, and checking that every file of the store is what was written."""

from __future__ import annotations

import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from filelock import Timeout

from common.errors import ExperimentError, did_you_mean
from common.utils.experiment_storage import store
from common.utils.experiment_storage.annotations import (
    annotations_path,
    forget_annotations,
)
from common.utils.experiment_storage.catalogue import Catalogue
from common.utils.experiment_storage.catalogue_cache import discard_cache
from common.utils.experiment_storage.checksums import checksums_path, read_checksums
from common.utils.experiment_storage.locks import is_running, lock_of
from common.utils.experiment_storage.log import damaged_lines
from common.utils.experiment_storage.packs import delete_from_packs, packs_lock, read_pack
from common.utils.experiment_storage.parquet import read_parquet
from common.utils.files import sha256_of
from common.utils.paths import get_experiments_dir, get_runs_dir

_LEFT_BEHIND_SECONDS = 3600.0
_LEFT = "left as it is: restore it, or delete it"


def size_of(name: str) -> int:
    """Bytes of the run's folder (checkpoints, samples) and of its files in the store, packs aside."""
    folder = get_runs_dir() / name
    files = [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
    files += [path for path in (store.log_path(name), store.parquet_path(name)) if path.exists()]
    return sum(path.stat().st_size for path in files)


def check_deletable(names: Sequence[str]) -> None:
    """Raises ExperimentError when one of them does not exist or is running."""
    catalogue = Catalogue()
    for name in names:
        found = name in catalogue or store.exists(name) or (get_runs_dir() / name).is_dir()
        if not found or not store.is_name(name):
            known = catalogue.names()
            hint = did_you_mean(name, known) if known else "there are no experiments"
            raise ExperimentError(f"there is no experiment '{name}'", hint)
        if name in catalogue and catalogue.manifest(name)["status"] == "running":
            raise ExperimentError(f"experiment '{name}' is running", "stop it first")


def delete_experiments(names: Sequence[str]) -> None:
    """Delete experiments and their run folders. Raises as `check_deletable`, before it deletes any."""
    check_deletable(names)
    with packs_lock():
        for name in names:
            try:
                with (lock := lock_of(name)).acquire(blocking=False):
                    store.parquet_path(name).unlink(missing_ok=True)
                    store.log_path(name).unlink(missing_ok=True)
                    Path(lock.lock_file).unlink(missing_ok=True)
            except Timeout:
                raise ExperimentError(f"experiment '{name}' has just been started") from None
        delete_from_packs(names)
        forget_annotations(names)
    for name in names:
        folder = get_runs_dir() / name
        if folder.is_symlink():  # what it leads to lies on another disk, and may not be ours alone
            folder.unlink()
        elif folder.is_dir():
            shutil.rmtree(folder)
    Catalogue()


class Finding(NamedTuple):
    """Something that is not as it should be; `mended` says whether it now is."""

    file: str
    problem: str
    action: str
    mended: bool


def check_store() -> list[Finding]:
    """Read every file of the store and verify its checksums, remove what crashes have left behind,
    and make the catalogue anew. Damaged files are named and left as they are."""
    if not get_experiments_dir().exists():
        return []
    with packs_lock():
        findings = [*_remove_leftovers(), *_damaged_files(), *_damaged_logs()]
        discard_cache()
        named = {finding.file for finding in findings}
        for broken in Catalogue().broken:
            if broken.file not in named:
                findings.append(Finding(broken.file, broken.error, _LEFT, False))
    return sorted(findings)


def _remove_leftovers() -> Iterator[Finding]:
    catalogue = Catalogue()
    for pack in catalogue.replaced_packs():
        if (path := store.packs_dir() / pack).exists():
            yield _remove(path, "another pack has taken its place")
    for path in get_experiments_dir().glob("*.parquet"):
        if (catalogue.file_of(path.stem) or "").startswith("packs/"):
            yield _remove(path, "it stands in a pack as well")
    for path in get_experiments_dir().glob("*.jsonl"):
        name = path.stem
        if path in (annotations_path(), checksums_path()) or is_running(name):
            continue  # whoever finishes a run removes its log at this moment
        if (catalogue.file_of(name) or path.name) != path.name:  # it can be read elsewhere
            yield _remove(path, "the log of a run that is finished")
        elif _is_old(path) and path.stat().st_size == 0:
            yield _remove(path, "a name that was claimed and never used")
    for path in get_experiments_dir().glob(".*.lock"):
        name = path.name[1:-5]
        unused = store.is_name(name) and not store.log_path(name).exists()
        if unused and _is_old(path) and not is_running(name):
            yield _remove(path, "the lock of a run that is over")
    for directory in (get_experiments_dir(), store.packs_dir()):
        for path in directory.glob(".*.tmp"):
            if _is_old(path):
                yield _remove(path, "half a file, from a process that was killed")


def _remove(path: Path, problem: str) -> Finding:
    path.unlink(missing_ok=True)
    return Finding(str(path.relative_to(get_experiments_dir())), problem, "removed", True)


def _is_old(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > _LEFT_BEHIND_SECONDS
    except (
        FileNotFoundError
    ):  # somebody else has just removed it, or it is a link that leads nowhere
        return False


def _damaged_files() -> Iterator[Finding]:
    checksums = read_checksums()
    for path in sorted(get_experiments_dir().glob("*.parquet")):
        yield from _damage(path, checksums, lambda path: read_parquet(path))
    for path in sorted(store.packs_dir().glob("*.parquet")):
        yield from _damage(path, checksums, lambda path: deque(read_pack(path), maxlen=0))


def _damage(
    path: Path, checksums: Mapping[str, str], read: Callable[[Path], object]
) -> Iterator[Finding]:
    file = str(path.relative_to(get_experiments_dir()))
    try:
        if file in checksums and sha256_of(path) != checksums[file]:
            yield Finding(file, "it is not as it was written: its checksum differs", _LEFT, False)
            return
        read(path)
    except (OSError, ValueError, KeyError) as error:
        yield Finding(file, str(error).splitlines()[0], _LEFT, False)


def _damaged_logs() -> Iterator[Finding]:
    for path in sorted(get_experiments_dir().glob("*.jsonl")):
        try:
            damaged = damaged_lines(path)
        except OSError:
            continue  # finished or deleted in this moment, or no file: the catalogue names what is none
        if damaged:
            problem = f"damaged: line {', '.join(map(str, damaged))}"
            yield Finding(path.name, problem, "left out; every other record counts", False)
