"""Packs: many cold experiments in one Parquet file, so that ten thousand of them are forty files.

`packs/<time>.parquet` has the columns of an experiment and `manifest` (JSON), which stands in the
first row of each. Experiments never share a name, are sorted by it and lie in whole row groups, so
that DuckDB finds one of them by the statistics. A pack is never changed: taking something out
writes another pack, whose footer says which one it takes the place of. Whatever a crash leaves
behind (a file that is in a pack already, a pack that was replaced) does not count.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from common.errors import ExperimentError
from common.experiments.catalogue import Catalogue
from common.experiments.parquet import (
    ROW_GROUP_ROWS,
    Member,
    align,
    check_columns,
    metrics_of,
    open_parquet,
    parquet_writer,
    read_footer,
    read_parquet,
    schema_of,
    write_table,
)
from common.experiments.store import (
    FIXED_COLUMNS,
    MANIFEST_COLUMN,
    free_parquet_path,
    packs_dir,
    parquet_path,
)
from common.utils.file_locks import file_lock
from common.utils.manifest import identity
from common.utils.paths import get_experiments_dir

LOOSE_LIMIT = 512  # more finished experiments in files of their own than this ...
PACK_SIZE = 256  # ... and so many, the coldest, move into a pack
_FOOTER_KEY = b"pack"


def packs_lock() -> FileLock:
    """Held by whoever packs, unpacks or deletes finished experiments."""
    packs_dir().mkdir(parents=True, exist_ok=True)
    return file_lock(packs_dir() / ".lock")


def replaced_packs(path: Path) -> list[str]:
    """The file names of the packs that the pack `path` takes the place of."""
    with open_parquet(path) as file:
        return list(_footer(file)["replaces"])


def _footer(file: pq.ParquetFile) -> dict[str, Any]:
    footer: dict[str, Any] | None = read_footer(file, _FOOTER_KEY)
    if footer is None:
        raise ValueError("not a pack of this store")
    return footer


def read_pack(path: Path) -> Iterator[Member]:
    """The experiments of a pack, one at a time. Raises ValueError when it is damaged."""
    with open_parquet(path) as file:
        _footer(file)
        parts: list[pa.Table] = []
        for group in range(file.num_row_groups):
            for part in _split_by_manifest(file.read_row_group(group)):
                if parts and part[MANIFEST_COLUMN][0].is_valid:
                    yield _member(parts)
                    parts = []
                parts.append(part)
        if parts:
            yield _member(parts)


def _split_by_manifest(table: pa.Table) -> list[pa.Table]:
    valid = table[MANIFEST_COLUMN].is_valid().to_numpy()
    starts = sorted({0, *valid.nonzero()[0].tolist()})
    ends = [*starts[1:], len(table)]
    return [table.slice(start, end - start) for start, end in zip(starts, ends, strict=True)]


def _member(parts: list[pa.Table]) -> Member:
    table = pa.concat_tables(parts)
    if not (text := table[MANIFEST_COLUMN][0].as_py()):
        raise ValueError("an experiment in it has no manifest")
    table = table.drop_columns([MANIFEST_COLUMN])
    unused = [metric for metric in metrics_of(table) if table[metric].null_count == len(table)]
    table = table.drop_columns(unused)
    check_columns(table)
    return json.loads(text), table


def pack_cold_experiments() -> int:
    """Pack the coldest experiments while there are more than LOOSE_LIMIT; how many were packed."""
    with os.scandir(get_experiments_dir()) as entries:
        loose = [entry.name for entry in entries if entry.name.endswith(".parquet")]
    if len(loose) <= LOOSE_LIMIT:
        return 0
    whole_packs = -(-(len(loose) - LOOSE_LIMIT) // PACK_SIZE)
    coldest = sorted(loose, key=_last_change)[: whole_packs * PACK_SIZE]
    try:
        with packs_lock().acquire(blocking=False):
            return _pack([Path(file).stem for file in coldest])
    except Timeout:  # another process is at it
        return 0


def _last_change(file: str) -> int:
    try:
        return (get_experiments_dir() / file).stat().st_mtime_ns
    except FileNotFoundError:  # another process has just packed it
        return 0


def pack_experiments() -> int:
    """Pack every finished experiment that has a file of its own; how many were packed."""
    with packs_lock():
        return _pack([path.stem for path in get_experiments_dir().glob("*.parquet")])


def _pack(names: Sequence[str]) -> int:
    for replaced in Catalogue().replaced_packs():
        (packs_dir() / replaced).unlink(missing_ok=True)
    packed = 0
    for first in range(0, len(names), PACK_SIZE):
        # A file that a crash has left behind, and one whose name another experiment has, stay.
        loose = {
            place.name
            for place in Catalogue().places("name = stored")
            if place.file == f"{place.name}.parquet"
        }
        moved = write_pack(*_loose_members(loose & {*names[first : first + PACK_SIZE]}))
        for name in moved:
            parquet_path(name).unlink()
        packed += len(moved)
    return packed


def _loose_members(names: Iterable[str]) -> tuple[Iterator[Member], list[str]]:
    """The experiments that go into one pack, and their metrics."""
    spelling: dict[str, str] = {}
    chosen = []
    for path in map(parquet_path, sorted(names)):
        with open_parquet(path) as file:
            metrics = [name for name in file.schema_arrow.names if name not in FIXED_COLUMNS]
            rows = file.metadata.num_rows  # without any there is no place for the manifest
        # `Loss` and `loss` are one name to DuckDB: they cannot be columns of one file.
        if rows and all(spelling.get(name.lower(), name) == name for name in metrics):
            spelling |= {name.lower(): name for name in metrics}
            chosen.append(path)
    return map(read_parquet, chosen), list(spelling.values())


def write_pack(
    members: Iterable[Member], metrics: Sequence[str], replaces: Sequence[str] = ()
) -> list[str]:
    """Write a pack and return the names of the experiments in it; without any there is no pack."""
    remaining = iter(members)
    first = next(remaining, None)
    if first is None:
        return []
    names = []
    path = packs_dir() / f"{time.time_ns()}.parquet"
    schema = schema_of(metrics).append(pa.field(MANIFEST_COLUMN, pa.string()))
    with parquet_writer(path, schema, _FOOTER_KEY, {"replaces": list(replaces)}) as writer:
        waiting: list[pa.Table] = []
        for manifest, table in chain([first], remaining):
            names.append(str(manifest["name"]))
            waiting.append(_with_manifest(manifest, table, schema))
            if sum(map(len, waiting)) >= ROW_GROUP_ROWS:
                writer.write_table(pa.concat_tables(waiting))
                waiting = []
        if waiting:
            writer.write_table(pa.concat_tables(waiting))
    return names


def _with_manifest(manifest: dict[str, Any], table: pa.Table, schema: pa.Schema) -> pa.Table:
    texts = [json.dumps(manifest), *[None] * (len(table) - 1)]
    table = table.append_column(MANIFEST_COLUMN, pa.array(texts, pa.string()))
    return align(table, schema)


def unpack_experiment(name: str) -> Path:
    """Bring an experiment back into a file of its own. Raises ExperimentError when it has one, or
    when there is none of that name."""
    with packs_lock():
        place = Catalogue().place(name)
        pack = get_experiments_dir() / place.file
        if pack.parent != packs_dir():
            raise ExperimentError(f"experiment '{name}' is in no pack", f"it is {place.file}")
        path = write_table(*read_member(pack, place.id), free_parquet_path(place.stored, place.id))
        take_out(pack, {place.id})
    return path


def read_member(pack: Path, identifier: str) -> Member:
    """The experiment `identifier` of a pack that holds it."""
    return next(member for member in read_pack(pack) if identity(member[0]) == identifier)


def take_out(pack: Path, ids: Collection[str]) -> None:
    """Write the pack anew without the experiments `ids`. The caller holds `packs_lock`."""
    with open_parquet(pack) as file:
        fixed = (*FIXED_COLUMNS, MANIFEST_COLUMN)
        metrics = [name for name in file.schema_arrow.names if name not in fixed]
    for replaced in replaced_packs(
        pack
    ):  # left behind by a crash: `pack` alone says that it is void
        (packs_dir() / replaced).unlink(missing_ok=True)
    staying = (member for member in read_pack(pack) if identity(member[0]) not in ids)
    write_pack(staying, metrics, replaces=[pack.name])
    pack.unlink()
