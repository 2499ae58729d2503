"""Read whole experiments from a log, a file or a pack."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from common.experiments.catalogue import Catalogue
from common.experiments.log import read_log
from common.experiments.packs import read_pack
from common.experiments.parquet import Member, read_parquet, rows_to_tables, schema_of, with_name
from common.experiments.store import packs_dir
from common.utils.manifest import identity
from common.utils.paths import get_experiments_dir


def read_members(names: Sequence[str]) -> Iterator[Member]:
    """Yield (manifest, rows) of each experiment as stored, file by file. Raises ExperimentError for
    an unknown name."""
    catalogue = Catalogue()
    files: dict[str, dict[str, str]] = {}  # {file: {id: name}}
    for place in map(catalogue.place, names):
        files.setdefault(place.file, {})[place.id] = place.name
    for file, wanted in files.items():
        for member in read_file(get_experiments_dir() / file):
            if name := wanted.get(identity(member[0])):
                yield with_name(member, name)


def read_file(path: Path) -> Iterator[Member]:
    """The experiments of a log, a Parquet file or a pack of the store."""
    if path.parent == packs_dir():
        yield from read_pack(path)
    elif path.suffix == ".parquet":
        yield read_parquet(path)
    else:
        content = read_log(path)
        tables = rows_to_tables(path.stem, content.iter_rows(), content.metrics)
        empty = schema_of(content.metrics).empty_table()
        yield content.manifest, pa.concat_tables([empty, *tables])
