"""The process of `sql_process.py`: runs SELECT statements within their limits until stdin is closed."""

from __future__ import annotations

import io
import os
import pickle
import queue
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import count
from pathlib import Path
from typing import Any

import duckdb
import psutil

from common.errors import ExperimentError
from common.experiments.recovery import open_catalogue
from common.experiments.sql_process import Question
from common.experiments.sql_views import connect
from common.utils.paths import get_experiments_dir

Send = Callable[[str, Any], None]
_ATTEMPTS = 10
_PATIENCE_SECONDS = 60.0  # of retries, if runs finish while they are read
_BATCH_ROWS = 10_000
_PIECE_BYTES = 2**20
_OWN_BYTES = 256 * 2**20  # overhead of Python and DuckDB
_RESULT_SHARE = 4  # the caller also holds the result
_CGROUPS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"),
)
_EXPLAIN = re.compile(r"^\s*EXPLAIN\s+(ANALYZE\s+|\([^)]*\)\s*)?", re.IGNORECASE)
_TABLES = "the tables are `experiments` and `runs`; try: DESCRIBE experiments"
_TEXT = "a value of the configuration is text: TRY_CAST(config->>'$.optimizer.lr' AS DOUBLE) > 1e-3"
_LESS = "query less: aggregate or filter first, and select only the columns that you need"


def serve() -> None:
    """Read queries from stdin and write answers to stdout."""
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # prints must not break the protocol
    asked: queue.SimpleQueue[tuple[Question, dict[str, str]]] = queue.SimpleQueue()

    def read() -> None:
        try:
            while True:
                asked.put(pickle.load(sys.stdin.buffer))
        finally:
            os._exit(0)  # the caller has exited: abandon a running query

    def send(kind: str, content: Any) -> None:
        pickle.dump((kind, content), output)
        output.flush()

    threading.Thread(target=read, daemon=True).start()
    while True:
        question, environment = asked.get()
        os.environ.clear()
        os.environ.update(environment)
        try:
            answer(question, send)
            send("done", None)
        except ExperimentError as error:
            send("error", (error.message, error.hint))
        except (MemoryError, duckdb.OutOfMemoryException):
            needed = f"the query needs more than {_bound(question) / 2**30:.1f} GiB of memory"
            send("fatal", (needed, _LESS))
        except OSError as error:
            send("system", (error.errno, error.strerror or str(error), error.filename))
        except BaseException:
            import traceback

            send("bug", traceback.format_exc())


def answer(question: Question, send: Send) -> None:
    """Send a warning for each unreadable file, then `begun`, then the parts of the answer. Raises
    ExperimentError for an invalid query, MemoryError beyond its limit.
    """
    memory_bytes = _bound(question)
    _limit_memory(memory_bytes)
    with _readable_errors(question.sql):
        give_up = time.monotonic() + _PATIENCE_SECONDS
        for attempt in count():
            try:
                with _nothing_moves() if attempt > 2 else nullcontext():
                    catalogue = open_catalogue()
                    os.chdir(get_experiments_dir())
                    connection = connect(catalogue, question.sql, memory_bytes)
                    statement = _only_read(connection, question.sql)
                    send("begun", None)
                    parts = _parts(connection, statement, question, memory_bytes // _RESULT_SHARE)
                    first = next(parts)  # the query has run by now
                break
            except (FileNotFoundError, duckdb.IOException, duckdb.PermissionException) as error:
                # A run was just finished or packed: its rows have moved to another file. The error
                # may also be DuckDB's refusal of an existing file.
                is_log = isinstance(error, FileNotFoundError)
                is_last = time.monotonic() > give_up if is_log else attempt >= _ATTEMPTS - 1
                if is_last or not (is_log or _is_of_store(str(error))):
                    raise
        for broken in catalogue.broken:
            send("warning", f"left out {broken.file}: {broken.error}")
        send("part", first)
        for part in parts:
            send("part", part)


def _is_of_store(message: str) -> bool:
    store = get_experiments_dir()
    return any((store / named).is_relative_to(store) for named in re.findall('"(.*?)"', message))


@contextmanager
def _nothing_moves() -> Iterator[None]:
    from common.experiments.store import packs_lock

    with packs_lock():
        yield


# Bounds -------------------------------------------------------------------------------------------


def _bound(question: Question) -> int:
    return question.memory_bytes or _free_bytes() // 2


def _free_bytes() -> int:
    """Free memory of the machine, or of the container."""
    free = int(psutil.virtual_memory().available)
    for folder, limit, used in _CGROUPS:
        try:
            most, now = (int((folder / file).read_text()) for file in (limit, used))
        except (OSError, ValueError):  # no limit: no such file, or it contains `max`
            continue
        free = min(free, most - now)
    return max(free, 0)


def _limit_memory(memory_bytes: int) -> None:
    """Make allocations beyond the limit fail, in DuckDB and Python alike."""
    try:
        import resource
    except ImportError:  # Windows: only DuckDB's own limit
        return
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    soft = memory_bytes + _OWN_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (soft if hard < 0 else min(soft, hard), hard))


# Results ------------------------------------------------------------------------------------------


def _parts(
    connection: duckdb.DuckDBPyConnection,
    statement: duckdb.Statement,
    question: Question,
    most_bytes: int,
) -> Iterator[bytes]:
    """Yield the parts of the result, with at most one row more than the limit."""
    sent = 0
    write = _arrow if question.form == "arrow" else _rows
    for part in write(connection, statement, question.limit):
        sent += len(part)
        if sent > most_bytes:
            raise ExperimentError(f"the result has more than {most_bytes / 2**20:,.0f} MiB", _LESS)
        yield part


def _rows(
    connection: duckdb.DuckDBPyConnection, statement: duckdb.Statement, limit: int | None
) -> Iterator[bytes]:
    connection.execute(statement)
    left = sys.maxsize if limit is None else limit + 1
    batch = connection.fetchmany(min(left, _BATCH_ROWS))
    columns = [column[0] for column in connection.description or ()]
    yield pickle.dumps(columns)
    while batch:
        yield pickle.dumps(batch)
        left -= len(batch)
        batch = connection.fetchmany(min(left, _BATCH_ROWS)) if left else []


def _arrow(
    connection: duckdb.DuckDBPyConnection, statement: duckdb.Statement, limit: int | None
) -> Iterator[bytes]:
    import pyarrow as pa

    relation = connection.sql(statement)
    if limit is not None:
        relation = relation.limit(limit + 1)
    reader = relation.to_arrow_reader(_BATCH_ROWS)
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, reader.schema) as stream:
        for batch in reader:
            stream.write_batch(batch)
            if sink.tell() > _PIECE_BYTES:
                yield sink.getvalue()
                sink.seek(0)
                sink.truncate()
    yield sink.getvalue()


# Statements and errors ----------------------------------------------------------------------------


def _only_read(connection: duckdb.DuckDBPyConnection, sql: str) -> duckdb.Statement:
    """Parse the one statement of `sql`. Raises ExperimentError unless it is a SELECT or explains one."""
    # The function of the module would create a second database: 18 ms.
    statements = connection.extract_statements(sql)
    kinds = [_kind(statement) for statement in statements]
    if kinds == ["EXPLAIN"]:  # EXPLAIN ANALYZE runs the statement
        explained = _EXPLAIN.sub("", statements[0].query)
        kinds = [_kind(statement) for statement in connection.extract_statements(explained)]
    if kinds == ["MULTI"] and _is_query(connection, statements[0].query):
        return statements[0]  # a PIVOT queries the values first
    if kinds != ["SELECT"]:
        raise ExperimentError("the store is read-only: give one SELECT statement")
    return statements[0]


def _kind(statement: duckdb.Statement) -> str:
    return str(statement.type).rpartition(".")[2]


def _is_query(connection: duckdb.DuckDBPyConnection, sql: str) -> bool:
    """Whether `sql` is valid as a subquery, which statements that write are not."""
    try:
        return len(connection.extract_statements(f"SELECT * FROM ({sql.rstrip('; ')}\n)")) == 1
    except duckdb.Error:
        return False


@contextmanager
def _readable_errors(sql: str) -> Iterator[None]:
    try:
        yield
    except duckdb.OutOfMemoryException:
        raise
    except (OverflowError, ValueError) as error:
        raise ExperimentError(f"a value of the result cannot be shown: {error}") from error
    except duckdb.Error as error:
        if "bad_alloc" in str(error):
            raise MemoryError from error
        lines = [line for line in str(error).splitlines() if line.strip()]
        hint = next((line for line in lines[1:] if not line.startswith(("LINE", " "))), "")
        if "->" in sql and re.search(
            "explicit (type )?cast|Could not convert string '\\$", lines[0]
        ):
            hint = _TEXT
        raise ExperimentError(lines[0], hint or _TABLES) from error
