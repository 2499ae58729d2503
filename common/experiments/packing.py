"""Packing: move the oldest experiments of a large store from files into packs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from filelock import Timeout

from common.experiments.packs import write_pack
from common.experiments.parquet import Member, open_parquet, read_parquet
from common.experiments.recovery import open_catalogue
from common.experiments.rows import FIXED_COLUMNS
from common.experiments.store import packs_dir, packs_lock, parquet_path
from common.utils.paths import get_experiments_dir

LOOSE_LIMIT = 512  # above this number of finished experiments in separate files ...
PACK_SIZE = 256  # ... this many of the oldest move into a pack


def pack_cold_experiments() -> int:
    """Pack the oldest experiments while there are more than LOOSE_LIMIT; return the number packed."""
    with os.scandir(get_experiments_dir()) as entries:
        loose = [entry.name for entry in entries if entry.name.endswith(".parquet")]
    if len(loose) <= LOOSE_LIMIT:
        return 0
    whole_packs = -(-(len(loose) - LOOSE_LIMIT) // PACK_SIZE)
    coldest = sorted(loose, key=_last_change)[: whole_packs * PACK_SIZE]
    try:
        with packs_lock().acquire(blocking=False):
            return _pack([Path(file).stem for file in coldest])
    except Timeout:  # another process is packing
        return 0


def _last_change(file: str) -> int:
    try:
        return (get_experiments_dir() / file).stat().st_mtime_ns
    except FileNotFoundError:  # another process has just packed it
        return 0


def pack_experiments() -> int:
    """Pack every finished experiment in a separate file; return the number packed."""
    with packs_lock():
        return _pack([path.stem for path in get_experiments_dir().glob("*.parquet")])


def _pack(names: Sequence[str]) -> int:
    for replaced in open_catalogue().replaced_packs():
        (packs_dir() / replaced).unlink(missing_ok=True)
    packed = 0
    for first in range(0, len(names), PACK_SIZE):
        # Keep files left behind by a crash, and those whose name another experiment has.
        loose = {
            place.name
            for place in open_catalogue().places("name = stored")
            if place.file == f"{place.name}.parquet"
        }
        moved = write_pack(*_loose_members(loose & {*names[first : first + PACK_SIZE]}))
        for name in moved:
            parquet_path(name).unlink()
        packed += len(moved)
    return packed


def _loose_members(names: Iterable[str]) -> tuple[Iterator[Member], list[str]]:
    """Select the experiments of one pack, and their metrics."""
    spelling: dict[str, str] = {}
    chosen = []
    for path in map(parquet_path, sorted(names)):
        with open_parquet(path) as file:
            metrics = [name for name in file.schema_arrow.names if name not in FIXED_COLUMNS]
            rows = file.metadata.num_rows  # the manifest needs a row
        # `Loss` and `loss` are one name to DuckDB and cannot be columns of one file.
        if rows and all(spelling.get(name.lower(), name) == name for name in metrics):
            spelling |= {name.lower(): name for name in metrics}
            chosen.append(path)
    return map(read_parquet, chosen), list(spelling.values())
