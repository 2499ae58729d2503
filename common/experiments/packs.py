"""Packs: many old experiments in one Parquet file, so that ten thousand of them are forty files.

`packs/<time>.parquet` has the columns of an experiment and `manifest` (JSON), which is in the first
row of each. Experiments have unique names, are sorted by name and occupy whole row groups, so that
DuckDB finds one by the statistics. A pack is never changed: removing an experiment writes a new
pack, whose footer names the one it replaces. Leftovers of a crash (a file that is already in a
pack, a replaced pack) do not count.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from common.experiments.parquet import (
    ROW_GROUP_ROWS,
    Member,
    align,
    check_columns,
    metrics_of,
    open_parquet,
    parquet_writer,
    read_footer,
    schema_of,
)
from common.experiments.rows import MANIFEST_COLUMN
from common.experiments.store import packs_dir
from common.utils.manifest import identity

_FOOTER_KEY = b"pack"


def replaced_packs(path: Path) -> list[str]:
    """File names of the packs that the pack `path` replaces."""
    with open_parquet(path) as file:
        return list(_footer(file)["replaces"])


def _footer(file: pq.ParquetFile) -> dict[str, Any]:
    footer: dict[str, Any] | None = read_footer(file, _FOOTER_KEY)
    if footer is None:
        raise ValueError("not a pack of this store")
    return footer


def read_pack(path: Path) -> Iterator[Member]:
    """Yield the experiments of a pack one by one. Raises ValueError if it is damaged."""
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


def read_member(pack: Path, identifier: str) -> Member:
    """The experiment `identifier` of a pack that contains it."""
    return next(member for member in read_pack(pack) if identity(member[0]) == identifier)


def write_pack(
    members: Iterable[Member], metrics: Sequence[str], replaces: Sequence[str] = ()
) -> list[str]:
    """Write a pack and return the names of its experiments; without any no pack is written."""
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
