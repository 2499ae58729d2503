"""The views `experiments` and `runs` in DuckDB.

DuckDB gets an explicit list of files with an explicit schema, so that it opens only those that a
query needs; it may read nothing else. Paths are relative to the store, the current folder: in a
full path DuckDB would interpret `[`, `*`, `?` and `\\` as a pattern.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import duckdb

from common.experiments.catalogue import Catalogue
from common.experiments.log import LogContent, read_log
from common.experiments.rows import FIXED_COLUMNS, RUN_COLUMNS
from common.utils.paths import get_experiments_dir

_KINDS = {"experiment_name": "VARCHAR", "step": "BIGINT", "split": "VARCHAR"}  # others: DOUBLE


def connect(catalogue: Catalogue, sql: str, memory_bytes: int) -> duckdb.DuckDBPyConnection:
    """Open an in-memory DuckDB with the two views; a view not mentioned in `sql` is empty.

    The current folder must be the store.
    """
    files = catalogue.files()
    parquet = [file for file in files if file.endswith(".parquet")]
    live = catalogue.places("file LIKE '%.jsonl'") if _mentions(sql, "experiments") else []
    connection = duckdb.connect(":memory:")
    connection.execute("SET allowed_paths = ?", [parquet])
    connection.execute("SET python_enable_replacements = false")
    connection.execute("SET autoinstall_known_extensions = false")
    connection.execute("SET autoload_known_extensions = false")
    connection.execute("SET temp_directory = ''")  # or large queries write to the current folder
    connection.execute("SET arrow_lossless_conversion = true")
    connection.execute(f"SET memory_limit = '{memory_bytes}B'")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    _create_runs(connection, catalogue.manifests if _mentions(sql, "runs") else [])
    logs = {place.name: read_log(get_experiments_dir() / place.file) for place in live}
    schema = {name: _KINDS.get(name, "DOUBLE") for name in FIXED_COLUMNS}
    spelling: dict[bytes, str] = {}  # `Loss` and `loss` of two runs are one column
    # A live run may have logged a new metric since the catalogue was read.
    for metric in chain(catalogue.metrics(), *(log.metrics for log in logs.values())):
        # DuckDB folds case only in ASCII: `É` and `é` are two columns.
        schema[spelling.setdefault(metric.encode().lower(), metric)] = "DOUBLE"
    _create_live_rows(connection, schema, logs)
    _create_experiments(
        connection, schema, parquet, catalogue.hiding_nan(), catalogue.names_apart()
    )
    connection.execute("BEGIN TRANSACTION READ ONLY")  # a SELECT may contain a DELETE in its WITH
    return connection


def _mentions(sql: str, view: str) -> bool:
    # query('...') and query_table('...') may compose the name.
    return re.search(rf"\b({view}|query|query_table)\b", sql, re.IGNORECASE) is not None


def _create_experiments(
    connection: duckdb.DuckDBPyConnection,
    schema: dict[str, str],
    parquet: list[str],
    hiding_nan: set[str],
    names_apart: dict[str, dict[str, str]],
) -> None:
    kinds: dict[tuple[bool, bool], list[str]] = {}
    for file in (file for file in parquet if file not in names_apart):
        kinds.setdefault(("/" in file, file in hiding_nan), []).append(file)
    parts = ["SELECT * FROM live_rows"]
    for (is_pack, hides_nan), files in kinds.items():
        columns = _opaque_metrics(schema) if hides_nan else []
        if is_pack:
            parts.append(f"SELECT * {_replace(columns)} FROM {_read(files, schema)}")
        else:
            parts.append(_select_named_after_files(files, schema, columns))
    for file, names in names_apart.items():
        columns = _opaque_metrics(schema) if file in hiding_nan else []
        parts.append(_select_renamed(file, names, schema, columns))
    connection.execute(f"CREATE VIEW experiments AS {' UNION ALL BY NAME '.join(parts)}")


def _read(files: Sequence[str], schema: Mapping[str, str], *options: str) -> str:
    """A call of `read_parquet` with the columns of `schema`; missing ones are NULL."""
    fields = ", ".join(
        _text(name) + ": {" + f"name: {_text(name)}, type: '{kind}', default_value: NULL" + "}"
        for name, kind in schema.items()
    )
    paths = ", ".join(map(_text, files))
    arguments = [f"[{paths}]", "schema = MAP {" + fields + "}", *options]
    return f"read_parquet({', '.join(arguments)})"


def _select_named_after_files(
    files: Sequence[str], schema: Mapping[str, str], columns: Sequence[str]
) -> str:
    """Rows of files with one experiment each, named by the file, so that DuckDB opens only those of
    the queried experiments."""
    file = _free_name(schema)
    columns = [*columns, f"parse_filename({file}, true) AS experiment_name"]
    source = _read(files, schema, f"filename = '{file}'")
    return f"SELECT * EXCLUDE ({file}) {_replace(columns)} FROM {source}"


def _select_renamed(
    file: str, names: Mapping[str, str], schema: Mapping[str, str], columns: Sequence[str]
) -> str:
    """Rows of some experiments of a file, by `names`: {name in the file: name of the experiment}."""
    cases = " ".join(f"WHEN {_text(old)} THEN {_text(new)}" for old, new in names.items())
    columns = [*columns, f"CASE experiment_name {cases} END AS experiment_name"]
    inside = ", ".join(map(_text, names))
    source = _read([file], schema)
    return f"SELECT * {_replace(columns)} FROM {source} WHERE experiment_name IN ({inside})"


def _free_name(schema: Mapping[str, str]) -> str:
    """An unused column name, since a metric can have any name."""
    taken = {name.lower() for name in schema}
    name = "file"
    while name in taken:
        name += "_"
    return name


def _opaque_metrics(schema: Mapping[str, str]) -> list[str]:
    """Multiply every metric by a volatile 1: several DuckDB optimizers prune by column statistics,
    but never for volatile expressions."""
    metrics = [_name(name) for name in schema if name not in FIXED_COLUMNS]
    return [f"{metric} * (random() < 2)::DOUBLE AS {metric}" for metric in metrics]


def _replace(columns: Sequence[str]) -> str:
    return f"REPLACE ({', '.join(columns)})" if columns else ""


def _name(column: str) -> str:
    """Quote a column name for SQL."""
    return '"' + column.replace('"', '""') + '"'


def _text(value: str) -> str:
    """Quote a string for SQL."""
    return "'" + value.replace("'", "''") + "'"


def _create_live_rows(
    connection: duckdb.DuckDBPyConnection, schema: dict[str, str], logs: dict[str, LogContent]
) -> None:
    columns = ", ".join(f"{_name(name)} {kind}" for name, kind in schema.items())
    connection.execute(f"CREATE TABLE live_rows ({columns})")
    for name, log in logs.items():
        from common.experiments.parquet import rows_to_tables  # pyarrow, 0.3 s

        for table in rows_to_tables(name, log.iter_rows(), log.metrics):
            connection.register("rows_of_log", table)
            connection.execute("INSERT INTO live_rows BY NAME SELECT * FROM rows_of_log")


def _create_runs(connection: duckdb.DuckDBPyConnection, manifests: list[dict[str, Any]]) -> None:
    rows = [{name: _cell(name, m.get(name)) for name in RUN_COLUMNS} for m in manifests]
    connection.execute(
        """CREATE TABLE run_rows AS
        SELECT unnest(from_json(?::JSON, ?::JSON), recursive := true)""",
        [json.dumps(rows), json.dumps([RUN_COLUMNS])],
    )
    connection.execute(
        "CREATE VIEW runs AS SELECT * REPLACE (config::JSON AS config) FROM run_rows"
    )


def _cell(column: str, value: Any) -> Any:
    if column == "config":
        # DuckDB rejects JSON with half a surrogate pair (such as from a path that is not UTF-8).
        return json.dumps(value, ensure_ascii=False).encode(errors="replace").decode()
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
