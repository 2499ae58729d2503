"""SQL over every experiment, finished and live: the views `experiments` and `runs` in DuckDB.

`experiments` has a row per logged step: experiment_name, step, epoch, split, time (seconds since
the run's start), then one DOUBLE column per metric. `runs` has a row per experiment.
DuckDB gets an explicit list of whole files, may read nothing else, and runs SELECT statements only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

import duckdb
import pyarrow as pa

from common.errors import ExperimentError
from common.utils.experiment_storage.catalogue import Catalogue
from common.utils.experiment_storage.log import read_log
from common.utils.experiment_storage.store import rows_to_table
from common.utils.logging import get_logger
from common.utils.paths import get_experiments_dir

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")
DEFAULT_LIMIT = 1_000_000  # rows
DEFAULT_TIMEOUT_SECONDS = 60.0
_EXPLAIN = re.compile(r"^\s*EXPLAIN\s+(ANALYZE\s+|\([^)]*\)\s*)?", re.IGNORECASE)
_RUN_COLUMNS = {
    "name": pa.string(),
    "status": pa.string(),
    "project": pa.string(),
    "started": pa.timestamp("us", "UTC"),
    "finished": pa.timestamp("us", "UTC"),
    "duration": pa.float64(),  # seconds
    "config": pa.string(),  # JSON
    "git_commit": pa.string(),
    "seed": pa.int64(),
    "host": pa.string(),
    "parameters": pa.int64(),
    "tokens": pa.int64(),
    "tags": pa.list_(pa.string()),
    "note": pa.string(),
}


def query_experiments(
    sql: str,
    *,
    limit: int | None = DEFAULT_LIMIT,
    timeout_seconds: float | None = DEFAULT_TIMEOUT_SECONDS,
) -> pd.DataFrame:
    """Run one SELECT over the views `experiments` and `runs`.

    Raises ExperimentError for wrong SQL, for statements that are not read-only, for a result of more
    than `limit` rows (a cut one could be taken for the whole) and for a query that takes longer than
    `timeout_seconds`; None takes a bound away. Broken files are left out with a warning that names
    them.
    """
    frame: pd.DataFrame = _run(sql, lambda result: result.df(), limit, timeout_seconds)
    _check_limit(len(frame), limit)
    return frame


def query_rows(
    sql: str,
    *,
    limit: int | None = DEFAULT_LIMIT,
    timeout_seconds: float | None = DEFAULT_TIMEOUT_SECONDS,
) -> tuple[list[str], list[list[Any]]]:
    """As `query_experiments`, without pandas: (column names, rows)."""
    # By way of Arrow, because DuckDB hands out times with a zone only where pytz is installed.
    table = _run(sql, lambda result: result.to_arrow_table(), limit, timeout_seconds)
    _check_limit(len(table), limit)
    with _readable_errors():
        columns = [column.to_pylist() for column in table.columns]
    return table.column_names, [list(row) for row in zip(*columns, strict=True)]


def _check_limit(rows: int, limit: int | None) -> None:
    if limit is not None and rows > limit:
        raise ExperimentError(
            f"the result has more than {limit:,} rows",
            "aggregate it, add LIMIT to the statement, or allow more: --limit N, limit=N",
        )


def _run(
    sql: str,
    fetch: Callable[[duckdb.DuckDBPyRelation], T],
    limit: int | None,
    timeout_seconds: float | None,
) -> T:
    """What `fetch` makes of the result of `sql`, which has at most one row more than `limit`."""
    with _readable_errors():
        statement = _only_read(sql)
        connection = _connect_to_store()

    def work() -> T:
        with _readable_errors():
            relation = connection.sql(statement)
            return fetch(relation if limit is None else relation.limit(limit + 1))

    # In a thread, because DuckDB keeps the one it runs in from seeing Ctrl-C.
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        try:
            return future.result(timeout_seconds)
        except TimeoutError:
            raise ExperimentError(
                f"the query took longer than {timeout_seconds:g} seconds",
                "ask for less, or allow more: --timeout SECONDS, timeout_seconds=",
            ) from None
        finally:
            connection.interrupt()


def _only_read(sql: str) -> duckdb.Statement:
    """The one statement of `sql`. Raises ExperimentError when it is not a SELECT or explains none."""
    statements = duckdb.extract_statements(sql)
    kinds = [_kind(statement) for statement in statements]
    if kinds == ["EXPLAIN"]:  # EXPLAIN ANALYZE runs what it explains
        explained = _EXPLAIN.sub("", statements[0].query)
        kinds = [_kind(statement) for statement in duckdb.extract_statements(explained)]
    if kinds != ["SELECT"]:
        raise ExperimentError("the store is read-only: give one SELECT statement")
    return statements[0]


def _kind(statement: duckdb.Statement) -> str:
    return str(statement.type).rpartition(".")[2]


@contextmanager
def _readable_errors() -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OverflowError) as error:
        raise ExperimentError(f"a value of the result cannot be shown: {error}") from error
    except duckdb.Error as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        hint = next((line for line in lines[1:] if not line.startswith(("LINE", " "))), "")
        tables = "the tables are `experiments` and `runs`; try: DESCRIBE experiments"
        raise ExperimentError(lines[0], hint or tables) from error


def _connect_to_store() -> duckdb.DuckDBPyConnection:
    while True:
        try:
            return _connect(Catalogue())
        except FileNotFoundError:
            pass  # a run was finished in this moment: its rows are in its Parquet file now


def _connect(catalogue: Catalogue) -> duckdb.DuckDBPyConnection:
    for broken in catalogue.broken:
        get_logger("experiments").warning(f"left out {broken.file}: {broken.error}")
    files = [m["file"] for m in catalogue.manifests if m["file"].endswith(".parquet")]
    paths = [str(get_experiments_dir() / file) for file in files]
    connection = duckdb.connect(":memory:")
    connection.execute("SET allowed_paths = ?", [paths])
    connection.execute("SET python_enable_replacements = false")
    connection.execute("SET autoinstall_known_extensions = false")
    connection.execute("SET autoload_known_extensions = false")
    connection.execute("SET temp_directory = ''")  # or a large query would write where we stand
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    connection.register("live_rows", _live_rows(catalogue))
    connection.register("run_rows", _run_rows(catalogue.manifests))
    connection.execute(
        "CREATE VIEW runs AS SELECT * REPLACE (config::JSON AS config) FROM run_rows"
    )
    quoted = ", ".join("'" + path.replace("'", "''") + "'" for path in paths)
    finished = f"SELECT * FROM read_parquet([{quoted}], union_by_name = true)" if paths else ""
    # The live rows come first: their table has the fixed columns even when the store is empty.
    union = "SELECT * FROM live_rows" + (f" UNION ALL BY NAME {finished}" if finished else "")
    connection.execute(f"CREATE VIEW experiments AS {union}")
    return connection


def _live_rows(catalogue: Catalogue) -> pa.Table:
    tables = [rows_to_table("", [], pa)]
    spelling: dict[str, str] = {}  # `Loss` and `loss` of two runs are one column, as in DuckDB
    for manifest in catalogue.manifests:
        if manifest["file"].endswith(".jsonl"):
            rows = read_log(get_experiments_dir() / manifest["file"]).rows
            table = rows_to_table(manifest["name"], rows, pa)
            names = [spelling.setdefault(name.lower(), name) for name in table.column_names]
            tables.append(table.rename_columns(names))
    return pa.concat_tables(tables, promote_options="default")


def _run_rows(manifests: list[dict[str, Any]]) -> pa.Table:
    columns = {
        name: pa.array([_cell(name, manifest.get(name)) for manifest in manifests], kind)
        for name, kind in _RUN_COLUMNS.items()
    }
    return pa.table(columns)


def _cell(column: str, value: Any) -> Any:
    if column == "config":
        return json.dumps(value)
    if column == "note" and value is not None and not isinstance(value, str):
        return json.dumps(value)  # from the metadata of save_experiment
    if column in ("started", "finished") and value:
        return datetime.fromisoformat(value)
    return value
