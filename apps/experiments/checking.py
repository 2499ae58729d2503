"""Verify every file of the store, and remove leftovers of crashes."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from apps.experiments.renaming import begun_renamings, finish_renaming
from common.experiments import store
from common.experiments.catalogue import Catalogue, Copy
from common.experiments.catalogue_cache import discard_cache
from common.experiments.log import damaged_lines, read_records
from common.experiments.members import read_file
from common.experiments.packs import read_pack
from common.experiments.parquet import (
    read_manifest,
    read_parquet,
)
from common.experiments.recovery import open_catalogue
from common.experiments.run_folders import folder_id
from common.experiments.store import is_running, packs_lock
from common.utils.files import sha256_of
from common.utils.manifest import identity
from common.utils.paths import get_experiments_dir, get_runs_dir

_LEFT_BEHIND_SECONDS = 3600.0
_LEFT = "left unchanged: restore it, or delete it"


class Written(NamedTuple):
    """The checksum of a file as written, and the `id` of its experiment, if recorded."""

    sha256: str
    id: str | None


class Finding(NamedTuple):
    """A problem of the store; `mended`: whether it has been fixed."""

    file: str
    problem: str
    action: str
    mended: bool


def check_store() -> list[Finding]:
    """Read every file of the store and verify its checksums, remove leftovers of crashes, and
    rebuild the catalogue. Damaged files and experiments with the same name are reported and left
    unchanged."""
    if not get_experiments_dir().exists():
        return []
    with packs_lock():
        findings = [*_finish_renamings(), *_remove_leftovers(), *_damaged_files(), *_damaged_logs()]
        discard_cache()
        named = {finding.file for finding in findings}
        catalogue = open_catalogue()
        for broken in catalogue.broken:
            if broken.file not in named:
                findings.append(Finding(broken.file, broken.error, _LEFT, False))
        findings += _same_names(catalogue)
    return sorted(findings)


def _finish_renamings() -> Iterator[Finding]:
    """Finish renamings whose process was killed."""
    catalogue = open_catalogue()
    halves = {copy.id for copy in catalogue.copies()}
    done: set[str] = set()
    for renaming in begun_renamings():
        if renaming.id in done:
            continue  # it was renamed again
        done.add(renaming.id)
        folder = get_runs_dir() / renaming.old
        moved = [place.stored == renaming.new for place in catalogue.places("id = ?", renaming.id)]
        has_folder = moved == [True] and folder.is_dir() and folder_id(folder) == renaming.id
        if renaming.id in halves or has_folder:
            finish_renaming(renaming)
            problem = f"it was being renamed from '{renaming.old}'"
            yield Finding(f"{renaming.new}", problem, "renamed", True)


def _same_names(catalogue: Catalogue) -> Iterator[Finding]:
    for place in catalogue.places("name <> stored"):
        (other,) = catalogue.places("name = ?", place.stored)
        problem = f"another experiment, in {other.file}, is also named '{place.stored}'"
        action = f"both are kept; this one is listed as '{place.name}': --rename {place.name} NEW"
        yield Finding(place.file, problem, action, False)


def _remove_leftovers() -> Iterator[Finding]:
    catalogue = Catalogue()
    for pack in catalogue.replaced_packs():
        if (path := store.packs_dir() / pack).exists():
            yield _remove(path, "another pack replaces it")
    for file, original, identifier in _doubles(catalogue):
        # A process that finishes a run removes its log at this moment.
        is_live = file.endswith(".jsonl") and is_running(Path(file).stem)
        if not is_live and _is_held(file, original, identifier):
            yield _remove(get_experiments_dir() / file, f"all its rows are also in {original}")
    for path in get_experiments_dir().glob("*.jsonl"):
        is_unused = _is_old(path) or store.parquet_path(path.stem).exists()
        is_claim = store.is_name(path.stem) and is_unused and not is_running(path.stem)
        if is_claim and path.stat().st_size == 0:
            yield _remove(path, "a name that was claimed and never used")
    for path in get_experiments_dir().glob(".*.lock"):
        name = path.name[1:-5]
        unused = store.is_name(name) and not store.log_path(name).exists()
        if unused and _is_old(path) and not is_running(name):
            yield _remove(path, "the lock of a finished run")
    for directory in (get_experiments_dir(), store.packs_dir(), *_folders_of_runs()):
        for path in directory.glob("*.tmp"):
            yield from _half_written(path)


def _doubles(catalogue: Catalogue) -> Iterator[Copy]:
    """Files of single experiments that may be duplicates of another file."""
    yield from (copy for copy in catalogue.copies() if "/" not in copy.file)
    # A log copied from another machine during its run has fewer rows.
    for log in catalogue.places("file LIKE '%.jsonl'"):
        for other in catalogue.places("id = ? AND file LIKE '%.parquet'", log.id):
            yield Copy(log.file, other.file, log.id)


def _is_held(file: str, original: str, identifier: str) -> bool:
    """Whether every row of the experiment in `file` is also in `original`."""
    try:
        (_, table), (_, other) = (
            next(m for m in read_file(get_experiments_dir() / f) if identity(m[0]) == identifier)
            for f in (file, original)
        )
    except (OSError, ValueError, StopIteration):
        return False  # it is read and reported below
    return is_beginning(table, other)


def _folders_of_runs() -> list[Path]:
    return [path for path in get_runs_dir().glob("*") if path.is_dir()]


def _half_written(path: Path) -> Iterator[Finding]:
    """Check a temporary file: remove an old one, report a new one unless its process is alive."""
    if _is_old(path):
        yield _remove(path, "half a file, from a process that was killed")
    elif not _is_writing(path):
        problem = "half a file, from a process that was killed or runs on another machine"
        yield Finding(_shown(path), problem, "kept for an hour, then --check removes it", False)


def _is_writing(path: Path) -> bool:
    """Whether the process whose pid `atomic_path` put into the name is alive."""
    number = path.name.split(".")[-2]
    if not number.isdecimal() or not path.exists():
        return not path.exists()  # just renamed
    try:
        os.kill(int(number), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # alive, of another user
    return True


def _shown(path: Path) -> str:
    """Path relative to the store, or to the folder of runs beside it."""
    for folder in (get_experiments_dir(), get_experiments_dir().parent):
        if path.is_relative_to(folder):
            return str(path.relative_to(folder))
    return str(path)


def _remove(path: Path, problem: str) -> Finding:
    path.unlink(missing_ok=True)
    return Finding(_shown(path), problem, "removed", True)


def _is_old(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > _LEFT_BEHIND_SECONDS
    except FileNotFoundError:  # just removed by another process, or a dangling link
        return False


def _damaged_files() -> Iterator[Finding]:
    checksums = read_checksums()
    for path in sorted(get_experiments_dir().glob("*.parquet")):
        yield from _damage(path, checksums, lambda path: read_parquet(path))
    for path in sorted(store.packs_dir().glob("*.parquet")):
        yield from _damage(path, checksums, lambda path: deque(read_pack(path), maxlen=0))


def _damage(
    path: Path, checksums: Mapping[str, Written], read: Callable[[Path], object]
) -> Iterator[Finding]:
    file = str(path.relative_to(get_experiments_dir()))
    try:
        written = checksums.get(file)
        if written and sha256_of(path) != written.sha256 and not _is_another(path, written):
            yield Finding(file, "it was changed: its checksum differs", _LEFT, False)
            return
        read(path)
    except (OSError, ValueError, KeyError) as error:
        yield Finding(file, str(error).splitlines()[0], _LEFT, False)


def _is_another(path: Path, written: Written) -> bool:
    """Whether the file is a copy from another store: its experiment differs from the one written
    here under that name, which has moved."""
    if path.parent == store.packs_dir():
        return False
    key = identity(read_manifest(path))
    if written.id is not None:
        return key != written.id
    return bool(
        Catalogue().places("stored = ? AND id <> ? AND file LIKE 'packs/%'", path.stem, key)
    )


def _damaged_logs() -> Iterator[Finding]:
    for path in sorted(get_experiments_dir().glob("*.jsonl")):
        try:
            damaged = damaged_lines(path)
        except OSError:
            continue  # just finished or deleted, or not a file: the catalogue reports it
        if damaged:
            problem = f"damaged: line {', '.join(map(str, damaged))}"
            yield Finding(path.name, problem, "skipped; all other records count", False)


def is_beginning(table: pa.Table, other: pa.Table) -> bool:
    """Whether `other` starts with the rows of `table`, ignoring experiment names."""
    if len(table) > len(other) or not {*table.column_names} <= {*other.column_names}:
        return False
    for name in table.column_names[1:]:
        mine, its = table[name], other[name].slice(0, len(table))
        if not mine.is_valid().equals(its.is_valid()):
            return False
        if pa.types.is_floating(mine.type):  # in Arrow NaN equals nothing
            if not np.array_equal(mine.to_numpy(), its.to_numpy(), equal_nan=True):
                return False
        elif not mine.equals(its):
            return False
    return True


def read_checksums() -> dict[str, Written]:
    """{file of the store: its recorded checksum}; files from elsewhere have none."""
    path = get_experiments_dir() / store.CHECKSUMS
    records = [record for record, _ in read_records(path)] if path.exists() else []
    return {r["file"]: Written(r["sha256"], r.get("id")) for r in records if r is not None}
