"""SQL over every experiment, finished and live: the views `experiments` and `runs` in DuckDB.

`experiments` has a row per logged step: experiment_name, step, epoch, split, time (seconds since
the run's start), then one DOUBLE column per metric. `runs` has a row per experiment.
DuckDB gets an explicit list of whole files with an explicit schema, so that it opens those alone
that a query needs; it may read nothing else, and runs SELECT statements only.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import duckdb

from common.errors import ExperimentError
from common.utils.experiment_storage.catalogue import Catalogue
from common.utils.experiment_storage.log import LogContent, read_log
from common.utils.experiment_storage.store import FIXED_COLUMNS
from common.utils.logging import get_logger
from common.utils.paths import get_experiments_dir

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")
DEFAULT_LIMIT = 1_000_000  # rows
DEFAULT_TIMEOUT_SECONDS = 60.0
_ATTEMPTS = 10
_PATIENCE_SECONDS = 60.0  # with a store whose runs end faster than they can be read
_EXPLAIN = re.compile(r"^\s*EXPLAIN\s+(ANALYZE\s+|\([^)]*\)\s*)?", re.IGNORECASE)
_FILE = "_file_of_the_store"  # a column of DuckDB's making; a metric may well be named filename
_KINDS = {"experiment_name": "VARCHAR", "step": "BIGINT", "split": "VARCHAR"}  # others: DOUBLE
_RUN_COLUMNS = {
    "name": "VARCHAR",
    "status": "VARCHAR",
    "project": "VARCHAR",
    "started": "TIMESTAMPTZ",
    "finished": "TIMESTAMPTZ",
    "duration": "DOUBLE",  # seconds
    "config": "VARCHAR",  # JSON
    "git_commit": "VARCHAR",
    "seed": "BIGINT",
    "host": "VARCHAR",
    "parameters": "BIGINT",
    "tokens": "BIGINT",
    "tags": ["VARCHAR"],
    "note": "VARCHAR",
    "archived": "BOOLEAN",
    "precision": "VARCHAR",
    "compiled": "BOOLEAN",
    "threads": "BIGINT",
    "device": "VARCHAR",
    "cpu": "VARCHAR",
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
    columns, rows = _run(sql, lambda r: (r.columns, r.fetchall()), limit, timeout_seconds)
    _check_limit(len(rows), limit)
    return columns, [list(row) for row in rows]


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
        give_up = time.monotonic() + _PATIENCE_SECONDS
        for attempt in count():
            try:
                with _nothing_moves() if attempt > 2 else nullcontext():
                    connection = connect(Catalogue(), sql)
                    statement = _only_read(connection, sql)
                    return _fetch(connection, statement, fetch, limit, timeout_seconds)
            except (FileNotFoundError, duckdb.IOException, duckdb.PermissionException) as error:
                # A run was finished or packed in this moment: its rows are in another file now.
                # What DuckDB says may also be its refusal of a file that is there.
                is_log = isinstance(error, FileNotFoundError)
                is_last = time.monotonic() > give_up if is_log else attempt >= _ATTEMPTS - 1
                if is_last or str(get_experiments_dir()) not in str(error):
                    raise
    raise AssertionError("an attempt returns or raises")


@contextmanager
def _nothing_moves() -> Iterator[None]:
    from common.utils.experiment_storage.packs import packs_lock

    with packs_lock():
        yield


def _fetch(
    connection: duckdb.DuckDBPyConnection,
    statement: duckdb.Statement,
    fetch: Callable[[duckdb.DuckDBPyRelation], T],
    limit: int | None,
    timeout_seconds: float | None,
) -> T:
    def work() -> T:
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


def _only_read(connection: duckdb.DuckDBPyConnection, sql: str) -> duckdb.Statement:
    """The one statement of `sql`. Raises ExperimentError when it is not a SELECT or explains none."""
    # Asked of the module, DuckDB would make a second database for it: 18 ms.
    statements = connection.extract_statements(sql)
    kinds = [_kind(statement) for statement in statements]
    if kinds == ["EXPLAIN"]:  # EXPLAIN ANALYZE runs what it explains
        explained = _EXPLAIN.sub("", statements[0].query)
        kinds = [_kind(statement) for statement in connection.extract_statements(explained)]
    if kinds != ["SELECT"]:
        raise ExperimentError("the store is read-only: give one SELECT statement")
    return statements[0]


def _kind(statement: duckdb.Statement) -> str:
    return str(statement.type).rpartition(".")[2]


@contextmanager
def _readable_errors() -> Iterator[None]:
    try:
        yield
    except (OverflowError, ValueError) as error:
        raise ExperimentError(f"a value of the result cannot be shown: {error}") from error
    except duckdb.Error as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        hint = next((line for line in lines[1:] if not line.startswith(("LINE", " "))), "")
        tables = "the tables are `experiments` and `runs`; try: DESCRIBE experiments"
        raise ExperimentError(lines[0], hint or tables) from error


def connect(catalogue: Catalogue, sql: str) -> duckdb.DuckDBPyConnection:
    """An in-memory DuckDB with the two views; those that `sql` does not mention have no rows."""
    for broken in catalogue.broken:
        get_logger("experiments").warning(f"left out {broken.file}: {broken.error}")
    live, loose, packs = _files(catalogue)
    connection = duckdb.connect(":memory:")
    connection.execute("SET allowed_paths = ?", [[*loose, *packs]])
    connection.execute("SET python_enable_replacements = false")
    connection.execute("SET autoinstall_known_extensions = false")
    connection.execute("SET autoload_known_extensions = false")
    connection.execute("SET temp_directory = ''")  # or a large query would write where we stand
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    _create_runs(connection, catalogue.manifests if _mentions(sql, "runs") else [])
    logs = [read_log(Path(log)) for log in live] if _mentions(sql, "experiments") else []
    schema = {name: _KINDS.get(name, "DOUBLE") for name in FIXED_COLUMNS}
    spelling: dict[bytes, str] = {}  # `Loss` and `loss` of two runs are one column
    # A live run may have logged a new metric since the catalogue was made.
    for metric in chain(catalogue.metrics(), *(log.metrics for log in logs)):
        # Letters beyond ASCII are never one to DuckDB: `É` and `é` are two columns.
        schema[spelling.setdefault(metric.encode().lower(), metric)] = "DOUBLE"
    _create_live_rows(connection, schema, logs)
    _create_experiments(connection, schema, [*loose, *packs], catalogue.hiding_nan())
    connection.execute("BEGIN TRANSACTION READ ONLY")  # a SELECT may hold a DELETE in its WITH
    return connection


def _mentions(sql: str, view: str) -> bool:
    # query('...') and query_table('...') may put the name together.
    return re.search(rf"\b({view}|query|query_table)\b", sql, re.IGNORECASE) is not None


def _files(catalogue: Catalogue) -> tuple[list[str], list[str], list[str]]:
    """The paths of the live logs, of the Parquet files of one experiment and of the packs."""
    live: list[str] = []
    loose: list[str] = []
    packs: list[str] = []
    directory = str(get_experiments_dir())
    for file in catalogue.files():
        path = f"{directory}/{file}"
        (live if file.endswith(".jsonl") else packs if "/" in file else loose).append(path)
    return live, loose, packs


def _create_experiments(
    connection: duckdb.DuckDBPyConnection,
    schema: dict[str, str],
    paths: list[str],
    hiding_nan: set[str],
) -> None:
    fields = ", ".join(
        f"{_text(name)}: {{name: {_text(name)}, type: '{kind}', default_value: NULL}}"
        for name, kind in schema.items()
    )
    kinds: dict[tuple[bool, bool], list[str]] = {}
    for path in paths:
        file = path.removeprefix(f"{get_experiments_dir()}/")
        kinds.setdefault(("/" in file, file in hiding_nan), []).append(_text(path))
    parts = ["SELECT * FROM live_rows"]
    for (is_pack, hides_nan), files in kinds.items():
        source = f"read_parquet([{', '.join(files)}], schema = MAP {{{fields}}}"
        columns = _opaque_metrics(schema) if hides_nan else []
        if is_pack:
            parts.append(f"SELECT * {_replace(columns)} FROM {source})")
        else:
            # Named after its file, so that DuckDB opens only those files whose experiment is asked for.
            columns.append(f"parse_filename({_FILE}, true) AS experiment_name")
            parts.append(
                f"SELECT * EXCLUDE ({_FILE}) {_replace(columns)} FROM {source}, filename = '{_FILE}')"
            )
    connection.execute(f"CREATE VIEW experiments AS {' UNION ALL BY NAME '.join(parts)}")


def _opaque_metrics(schema: dict[str, str]) -> list[str]:
    """Every metric, times one, such that DuckDB cannot know it: it prunes by the statistics of the
    column, in several of its optimizers, but never by those of a volatile expression."""
    metrics = [_name(name) for name in schema if name not in FIXED_COLUMNS]
    return [f"{metric} * (random() < 2)::DOUBLE AS {metric}" for metric in metrics]


def _replace(columns: list[str]) -> str:
    return f"REPLACE ({', '.join(columns)})" if columns else ""


def _name(column: str) -> str:
    """The name of a column as SQL spells it."""
    return '"' + column.replace('"', '""') + '"'


def _text(value: str) -> str:
    """A text as SQL spells it."""
    return "'" + value.replace("'", "''") + "'"


def _create_live_rows(
    connection: duckdb.DuckDBPyConnection, schema: dict[str, str], logs: list[LogContent]
) -> None:
    columns = ", ".join(f"{_name(name)} {kind}" for name, kind in schema.items())
    connection.execute(f"CREATE TABLE live_rows ({columns})")
    for log in logs:
        from common.utils.experiment_storage.parquet import rows_to_tables  # pyarrow, 0.3 s

        for table in rows_to_tables(log.manifest["name"], log.iter_rows(), log.metrics):
            connection.register("rows_of_log", table)
            connection.execute("INSERT INTO live_rows BY NAME SELECT * FROM rows_of_log")


def _create_runs(connection: duckdb.DuckDBPyConnection, manifests: list[dict[str, Any]]) -> None:
    rows = [{name: _cell(name, m.get(name)) for name in _RUN_COLUMNS} for m in manifests]
    connection.execute(
        """CREATE TABLE run_rows AS
        SELECT unnest(from_json(?::JSON, ?::JSON), recursive := true)""",
        [json.dumps(rows), json.dumps([_RUN_COLUMNS])],
    )
    connection.execute(
        "CREATE VIEW runs AS SELECT * REPLACE (config::JSON AS config) FROM run_rows"
    )


def _cell(column: str, value: Any) -> Any:
    if column == "config":
        # Half a surrogate pair (of a path that is no UTF-8, say) is no JSON to DuckDB.
        return json.dumps(value, ensure_ascii=False).encode(errors="replace").decode()
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
