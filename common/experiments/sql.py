"""SQL over every experiment, finished and live: one SELECT over the views `experiments` and `runs`.

`experiments` has a row per logged step: experiment_name, step, epoch, split, time (seconds since
the run's start), then one DOUBLE column per metric. `runs` has a row per experiment.
A process of its own runs the query (`sql_worker.py`) within bounds of memory and time.
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

    Raises ExperimentError for wrong SQL, for statements that are not read-only, for a result of more
    than `limit` rows (a cut one could be taken for the whole), for a query that takes longer than
    `timeout_seconds`, and for one that needs more than `memory_bytes` (default: half of what the
    machine has free) or whose result is larger than a quarter of them. None for `limit` or
    `timeout_seconds` takes that bound away. Broken files are left out with a warning that names them.
    """
    with asked(Question(sql, "arrow", limit, memory_bytes)) as process:
        import duckdb  # while the query runs, which takes as long
        import pandas  # noqa: F401 (DuckDB would, later)
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
    """As `query_experiments`, without pandas: (column names, rows). Setting `stop` ends the query."""
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
