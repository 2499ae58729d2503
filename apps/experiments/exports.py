"""Export experiments to one CSV, JSON or Parquet file."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv

from common.errors import ExperimentError
from common.experiments.catalogue import Catalogue
from common.experiments.conditions import flatten
from common.experiments.members import read_members
from common.experiments.parquet import (
    Member,
    align,
    exact_writer,
    schema_of,
    table_to_rows,
)
from common.experiments.recovery import open_catalogue
from common.experiments.rows import RUN_COLUMNS
from common.experiments.store import RUNS_ENDING
from common.utils.files import atomic_path, write_text_atomic
from common.utils.tables import format_rows


def export_experiments(path: Path, names: Sequence[str] = ()) -> int:
    """Write the experiments `names` (default: all) to `path` and return their number.

    .csv and .parquet have the columns of the view `experiments`, a row per logged step; an empty
    cell was not logged. Beside a .csv, `<stem>.runs.csv` has a row per experiment: the columns of
    the view `runs`, and one per key of the configurations. .json has a list of manifests, each with
    its `rows`; NaN and infinities are the strings "NaN", "Infinity" and "-Infinity".
    Raises ExperimentError for another ending, an existing file, and an unknown name.
    """
    write = _WRITERS.get(path.suffix)
    if write is None:
        raise ExperimentError(f"cannot export to '{path.name}'", f"end it in {_ENDINGS}")
    beside = path.with_suffix(RUNS_ENDING) if path.suffix == ".csv" else None
    for file in filter(None, (path, beside)):
        if file.exists():
            raise ExperimentError(f"{file} exists", "choose another file")
    catalogue = open_catalogue()
    chosen = list(dict.fromkeys(names)) or [run.name for run in catalogue.overview()]
    metrics = {s.metric: None for name in chosen for s in catalogue.summaries(name=name)}
    with atomic_path(path) as temporary:
        write(temporary, read_members(chosen), schema_of(metrics))
    if beside is not None:
        rows = _table_of_runs([catalogue.manifest(name) for name in chosen])
        write_text_atomic(beside, format_rows(*rows, "csv") + "\n")
    return len(chosen)


def _table_of_runs(manifests: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[object]]]:
    """Return (columns, rows), with a column per configuration key, empty if absent."""
    facts = [column for column in RUN_COLUMNS if column != "config"]
    configs = [flatten(manifest["config"]) for manifest in manifests]
    keys = list(dict.fromkeys(key for config in configs for key in config))
    rows = [
        [_cell(manifest.get(fact)) for fact in facts] + [_cell(config.get(key)) for key in keys]
        for manifest, config in zip(manifests, configs, strict=True)
    ]
    return [*facts, *(f"config.{key}" for key in keys)], rows


def _cell(value: Any) -> Any:
    """Lists and mappings as JSON, which is unambiguous: a tag may contain a comma."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value


def _write_csv(path: Path, members: Iterator[Member], schema: pa.Schema) -> None:
    with pa_csv.CSVWriter(path, schema) as writer:
        for _, table in members:
            writer.write_table(align(table, schema))


def _write_parquet(path: Path, members: Iterator[Member], schema: pa.Schema) -> None:
    with exact_writer(path, schema) as writer:
        for _, table in members:
            writer.write_table(align(table, schema))


def _write_json(path: Path, members: Iterator[Member], schema: pa.Schema) -> None:
    catalogue = Catalogue()
    with path.open("w", encoding="utf-8") as file:
        before = "[\n"
        for manifest, table in members:
            # With the current tags and note.
            annotation = catalogue.annotation(str(manifest["name"]))._asdict()
            entry = _plain({**manifest, **annotation, "rows": table_to_rows(table)})
            file.write(before + json.dumps(entry, ensure_ascii=False))
            before = ",\n"
        file.write("[]\n" if before == "[\n" else "\n]\n")


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinities."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


_WRITERS: dict[str, Callable[[Path, Iterator[Member], pa.Schema], None]] = {
    ".csv": _write_csv,
    ".json": _write_json,
    ".parquet": _write_parquet,
}
_ENDINGS = ", ".join(_WRITERS)
