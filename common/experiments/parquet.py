"""Finished experiments as Parquet files, one each, with the manifest in the footer.

Imports pyarrow (0.3 s): lists and rankings do not import this module. A file is written once and
never replaced: DuckDB opens each file twice, and a replaced one gives wrong counts. Every page has
a checksum, verified on every read, and every file one that `--check` verifies.

Only integer and text columns have statistics. Statistics of DOUBLE columns omit NaN, which SQL
sorts as the largest value: a reader that prunes by them would lose the rows of diverged runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from common.experiments.log import append_records
from common.experiments.metrics import MetricSummary
from common.experiments.rows import FIXED_COLUMNS, FOOTER_KEY, MANIFEST_COLUMN
from common.experiments.store import CHECKSUMS, parquet_path
from common.utils.files import atomic_path, sha256_of
from common.utils.manifest import ID, identity
from common.utils.paths import get_experiments_dir

Member = tuple[dict[str, Any], pa.Table]  # (manifest, its rows)
ROW_GROUP_ROWS = 122_880  # read at a time by a DuckDB thread
_KINDS = {"experiment_name": pa.string(), "step": pa.int64(), "split": pa.string()}


def schema_of(metrics: Iterable[str]) -> pa.Schema:
    """The fixed columns, then one DOUBLE column per metric."""
    return pa.schema(
        [(name, _KINDS.get(name, pa.float64())) for name in (*FIXED_COLUMNS, *metrics)]
    )


def rows_to_table(name: str, rows: Sequence[Mapping[str, Any]], metrics: Iterable[str]) -> pa.Table:
    """Convert the rows of a log to a table of `schema_of(metrics)`."""
    columns: list[list[Any]] = [[name] * len(rows)]
    columns += [[row[column] for row in rows] for column in FIXED_COLUMNS[1:]]
    columns += [[row["metrics"].get(metric) for row in rows] for metric in metrics]
    schema = schema_of(metrics)
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema)


def rows_to_tables(
    name: str, rows: Iterable[Mapping[str, Any]], metrics: Sequence[str]
) -> Iterator[pa.Table]:
    """`rows_to_table` in chunks of ROW_GROUP_ROWS, since the rows of a long run do not fit in memory."""
    remaining = iter(rows)
    while chunk := list(islice(remaining, ROW_GROUP_ROWS)):
        yield rows_to_table(name, chunk, metrics)


def write_parquet(
    manifest: Mapping[str, Any],
    rows: Iterable[Mapping[str, Any]],
    metrics: Sequence[str] | None = None,
    path: Path | None = None,
) -> Path:
    """Write `<name>.parquet`, or `path`, from log rows: fsync first, then rename.

    With `metrics`, the names of all metrics, the rows are streamed.
    """
    if metrics is None:
        rows = list(rows)
        metrics = list(dict.fromkeys(name for row in rows for name in row["metrics"]))
    name = str(manifest["name"])
    path = path or parquet_path(name)
    with parquet_writer(path, schema_of(metrics), FOOTER_KEY, manifest) as writer:
        for table in rows_to_tables(name, rows, metrics):
            writer.write_table(table)
    return path


def write_table(manifest: Mapping[str, Any], table: pa.Table, path: Path | None = None) -> Path:
    """`write_parquet` of a table with `schema_of` its metrics, optionally to another `path`."""
    path = path or parquet_path(str(manifest["name"]))
    with parquet_writer(path, table.schema, FOOTER_KEY, manifest) as writer:
        writer.write_table(table)
    return path


@contextmanager
def parquet_writer(
    path: Path, schema: pa.Schema, key: bytes, footer: Mapping[str, Any]
) -> Iterator[pq.ParquetWriter]:
    """Open a writer of `path`, which appears complete and synced when the block succeeds.

    `footer` is stored in its metadata under `key`.
    """
    schema = schema.with_metadata({key: json.dumps(footer).encode()})
    with atomic_path(path) as temporary:
        with exact_writer(temporary, schema) as writer:
            yield writer
        record_checksum(path, temporary, identity(footer) if key == FOOTER_KEY else None)


def exact_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """A Parquet writer whose statistics never prune a row that a filter would keep."""
    return pq.ParquetWriter(
        path, schema, compression="zstd", write_page_checksum=True, write_statistics=list(_KINDS)
    )


def read_footer(file: pq.ParquetFile, key: bytes) -> Any:
    """The footer metadata under `key`, or None."""
    return json.loads((file.metadata.metadata or {}).get(key, b"null"))


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of one experiment. Raises ValueError if the file is malformed."""
    with open_parquet(path) as file:
        return _manifest_of(file)


def _manifest_of(file: pq.ParquetFile) -> dict[str, Any]:
    manifest: dict[str, Any] | None = read_footer(file, FOOTER_KEY)
    if manifest is None:
        raise ValueError("not an experiment of this store (its footer has no manifest)")
    return manifest


def read_parquet(path: Path) -> Member:
    """Read (manifest, table) of one experiment. Raises ValueError if the file is malformed."""
    with open_parquet(path) as file:
        manifest = _manifest_of(file)
        table = file.read(use_threads=False)  # faster for small files
    check_columns(table)
    return manifest, table.replace_schema_metadata(None)


def with_name(member: Member, name: str) -> Member:
    """Rename an experiment in memory."""
    manifest, table = member
    if manifest["name"] == name:
        return member
    names = pa.array([name] * len(table), pa.string())
    return {**manifest, "name": name, ID: identity(manifest)}, table.set_column(
        0, "experiment_name", names
    )


def has_metric_statistics(path: Path) -> bool:
    """Whether a metric of the file has statistics, which earlier versions wrote."""
    with open_parquet(path) as file:
        metadata = file.metadata
        return any(
            column.is_stats_set
            for group in map(metadata.row_group, range(metadata.num_row_groups))
            for column in map(group.column, range(metadata.num_columns))
            if column.path_in_schema not in (*FIXED_COLUMNS, MANIFEST_COLUMN)
        )


def check_columns(table: pa.Table) -> None:
    """Raise ValueError for a column that is missing, has another type, or has empty cells."""
    columns = set(table.column_names)  # the attribute builds a list on each access
    for column in (*FIXED_COLUMNS, *(columns - {*FIXED_COLUMNS})):
        if column not in columns:
            raise ValueError(f"it has no column '{column}'")
        if (found := table.schema.field(column).type) != _KINDS.get(column, pa.float64()):
            raise ValueError(f"its column '{column}' has the type {found}")
        if column in _KINDS and table[column].null_count:
            raise ValueError(f"its column '{column}' has empty cells")


def align(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Cast `table` to `schema`; missing columns are empty."""
    present = set(table.column_names)
    for field in schema:
        if field.name not in present:
            table = table.append_column(field, pa.nulls(len(table), field.type))
    return table.select(schema.names).replace_schema_metadata(None)


def metrics_of(table: pa.Table) -> list[str]:
    """The names of the metric columns."""
    return [column for column in table.column_names if column not in FIXED_COLUMNS]


@contextmanager
def open_parquet(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a file with page verification; Arrow errors in the block become ValueErrors."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            yield file
    except pa.ArrowException as error:
        raise ValueError(str(error)) from error
    except OSError as error:
        if error.errno is None:  # how Arrow reports a damaged page
            raise ValueError(str(error)) from error
        raise


def table_to_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Yield the rows in the format of the log."""
    fixed = FIXED_COLUMNS[1:]
    return [
        {
            **{column: row[column] for column in fixed},
            "metrics": {k: v for k, v in row.items() if k not in FIXED_COLUMNS and v is not None},
        }
        for row in table.to_pylist()
    ]


def summarise_table(name: str, table: pa.Table) -> list[MetricSummary]:
    """`metrics.summarise_rows` by columns."""
    splits = table["split"].combine_chunks().dictionary_encode()
    codes, steps = splits.indices.to_numpy(), table["step"].to_numpy()
    summaries = []
    for metric in metrics_of(table):
        logged = pc.is_valid(table[metric]).to_numpy(zero_copy_only=False)
        values = table[metric].to_numpy()
        for code, split in enumerate(splits.dictionary.to_pylist()):
            chosen = logged & (codes == code)
            if chosen.any():
                summaries.append(_summary(name, split, metric, values[chosen], steps[chosen]))
    return summaries


def _summary(name: str, split: str, metric: str, values: Any, steps: Any) -> MetricSummary:
    finite = np.isfinite(values)
    at_low = at_high = None
    if finite.any():
        at_low = int(np.argmin(np.where(finite, values, np.inf)))
        at_high = int(np.argmax(np.where(finite, values, -np.inf)))
    at_last = len(steps) - 1 - int(np.argmax(steps[::-1]))  # the last row of the highest step
    return MetricSummary(
        name,
        split,
        metric,
        num_values=len(values),
        first=float(values[0]),
        last=float(values[at_last]),
        minimum=None if at_low is None else float(values[at_low]),
        maximum=None if at_high is None else float(values[at_high]),
        minimum_step=None if at_low is None else int(steps[at_low]),
        maximum_step=None if at_high is None else int(steps[at_high]),
        last_step=int(steps[at_last]),
        non_finite=int((~finite).sum()),
    )


# Checksums ----------------------------------------------------------------------------------------


def _checksums_path() -> Path:
    """Path of the log of SHA-256 checksums of every file as written (format: see log.py)."""
    return get_experiments_dir() / CHECKSUMS


def record_checksum(path: Path, written: Path, identifier: str | None = None) -> None:
    """Record the checksum of `written` for `path`, if that is in the store."""
    if not path.is_relative_to(get_experiments_dir()):
        return
    file = str(path.relative_to(get_experiments_dir()))
    record = {"kind": "written", "file": file, "sha256": sha256_of(written), "id": identifier}
    append_records(_checksums_path(), [record])
