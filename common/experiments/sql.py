"""SQL over every experiment, finished and live: one SELECT over the views `experiments` and `runs`.

`experiments` has a row per logged step: experiment_name, step, epoch, split, time (seconds since
the run's start), then one DOUBLE column per metric. `runs` has a row per experiment.
A separate process runs the query (`sql_worker.py`) within limits of memory and time.
"""

from __future__ import annotations

import pickle
from threading import Event
from typing import TYPE_CHECKING, Any

from common.errors import ExperimentError
from common.experiments.sql_process import Question, asked

if TYPE_CHECKING:
    import pandas as pd

DEFAULT_LIMIT = 1_000_000  # rows
DEFAULT_TIMEOUT_SECONDS = 60.0


def query_experiments(
    sql: str,
    *,
    limit: int | None = DEFAULT_LIMIT,
    timeout_seconds: float | None = DEFAULT_TIMEOUT_SECONDS,
    memory_bytes: int | None = None,
) -> pd.DataFrame:
    """Run one SELECT over the views `experiments` and `runs`.

    Raises ExperimentError for invalid SQL, statements that are not read-only, results of more than
    `limit` rows (never truncated silently), queries longer than `timeout_seconds`, and queries that
    need more than `memory_bytes` (default: half of the free memory) or whose result is larger than
    a quarter of that. None disables `limit` or `timeout_seconds`. Unreadable files are skipped with
    a warning.
    """
    with asked(Question(sql, "arrow", limit, memory_bytes)) as process:
        import duckdb  # while the query runs, which takes as long
        import pandas  # noqa: F401 (DuckDB imports it later)
        import pyarrow as pa

        content = b"".join(process.receive(timeout_seconds))
    with pa.ipc.open_stream(content) as stream:
        table = stream.read_all()
    _check_limit(len(table), limit)
    try:
        with duckdb.connect(":memory:") as connection:
            frame: pd.DataFrame = connection.from_arrow(table).df()
    except (duckdb.Error, OverflowError, ValueError) as error:
        raise ExperimentError(f"a value of the result cannot be shown: {error}") from error
    return frame


def query_rows(
    sql: str,
    *,
    limit: int | None = DEFAULT_LIMIT,
    timeout_seconds: float | None = DEFAULT_TIMEOUT_SECONDS,
    memory_bytes: int | None = None,
    stop: Event | None = None,
) -> tuple[list[str], list[list[Any]]]:
    """`query_experiments` without pandas: (column names, rows). Setting `stop` ends the query."""
    with asked(Question(sql, "rows", limit, memory_bytes)) as process:
        columns, *batches = map(pickle.loads, process.receive(timeout_seconds, stop))
    rows = [list(row) for batch in batches for row in batch]
    _check_limit(len(rows), limit)
    return columns, rows


def _check_limit(rows: int, limit: int | None) -> None:
    if limit is not None and rows > limit:
        raise ExperimentError(
            f"the result has more than {limit:,} rows",
            "aggregate it, add LIMIT to the statement, or allow more: --limit N, limit=N",
        )
