"""Filters, orders and aggregates over every kind of value: the store answers as a table in memory does."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest

from apps.experiments.exports import export_experiments
from common.experiments import parquet
from common.experiments.catalogue import Catalogue
from common.experiments.packing import pack_experiments
from common.experiments.run import Run
from common.experiments.sql import query_rows
from common.experiments.sql_views import connect
from common.experiments.store import parquet_path
from common.utils import start_experiment
from common.utils.paths import get_experiments_dir

NAN, INF = math.nan, math.inf
LOSSES: dict[str, list[float | None]] = {
    "falls": [3.0, 2.0, 1.0],
    "diverges": [3.0, 2.0, NAN],
    "recovers": [3.0, NAN, 1.0],
    "extremes": [INF, -0.0, None, -INF, 0.0],
    "never": [NAN, NAN],
    "huge": [1e308, -1e308, 5e-324],
}
VALUES = ["-1", "0", "-0.0::DOUBLE", "1", "2.5", "3", "100", "'inf'::DOUBLE", "'-inf'::DOUBLE"]
VALUES += ["'nan'::DOUBLE", "'nan'"]
OPERATORS = ["=", "<>", "<", "<=", ">", ">=", "IS DISTINCT FROM", "IS NOT DISTINCT FROM"]
PREDICATES = [f"loss {operator} {value}" for operator in OPERATORS for value in VALUES]
PREDICATES += [f"loss {operator} other" for operator in OPERATORS]
PREDICATES += [
    "isnan(loss)",
    "isinf(loss)",
    "isfinite(loss)",
    "loss IS NULL",
    "loss > 3 OR step = 1",
]
PREDICATES += ["loss BETWEEN 1 AND 2", "loss BETWEEN 3 AND 'nan'", "loss NOT BETWEEN 1 AND 3"]
PREDICATES += ["loss IN (1, 2)", "loss IN ('nan')", "loss IN (5, 'nan')", "loss NOT IN (1, 2, 3)"]
PREDICATES += [
    "loss + 0 > 3",
    "greatest(loss, 3) > 3",
    "coalesce(loss, 'nan') > 3",
    "abs(loss) > 3",
]
PREDICATES += ["loss > 3 AND step < 3", "isnan(loss) AND experiment_name = 'diverges'"]
PREDICATES += [
    "loss > 3 AND split = 'val'",
    "loss > 3 AND experiment_name IN ('falls', 'recovers')",
]
QUERIES = [
    f"SELECT count(*) FROM experiments WHERE {condition}"
    for predicate in PREDICATES
    for condition in (predicate, f"NOT ({predicate})")
]
QUERIES += [
    f"SELECT loss FROM experiments ORDER BY loss {direction} NULLS {nulls} LIMIT {limit}"
    for direction in ("ASC", "DESC")
    for nulls in ("FIRST", "LAST")
    for limit in (1, 2, 5, 8, 12)
]
QUERIES += [
    "SELECT min(loss), max(loss), count(loss), count(*), count(DISTINCT loss) FROM experiments",
    "SELECT max(loss) FROM experiments",
    "SELECT min(loss) FROM experiments",
    "SELECT max(loss) FILTER (NOT isnan(loss)), median(loss) FROM experiments",
    "SELECT min(step), max(step), min(split), max(experiment_name) FROM experiments",
    "SELECT experiment_name, max(loss), arg_max(step, loss) FROM experiments GROUP BY 1 ORDER BY 1",
    "SELECT isnan(loss), count(*) FROM experiments GROUP BY 1 ORDER BY 1",
    "SELECT loss > 3, count(*) FROM experiments GROUP BY 1 ORDER BY 1",
    "SELECT DISTINCT loss FROM experiments ORDER BY 1",
    "SELECT count(*) FROM experiments a JOIN experiments b USING (loss)",
    "SELECT count(*) FROM experiments WHERE loss = (SELECT max(loss) FROM experiments)",
    "SELECT step FROM experiments QUALIFY rank() OVER (ORDER BY loss DESC) = 1 ORDER BY 1",
]


def log_all(finish: Callable[[str], bool]) -> list[Run]:
    """Log LOSSES; the runs that are still alive."""
    live = []
    for name, losses in LOSSES.items():
        run = start_experiment(name)
        for step, loss in enumerate(losses):
            metrics = {"other": float(step)} | ({} if loss is None else {"loss": loss})
            run.log(metrics, step=step, split="val" if step % 2 else "train")
        if finish(name):
            run.finish()
        else:
            live.append(run)
    return live


def write_as_before(name: str) -> None:
    """What an earlier version wrote: statistics of every column. A long run has many row groups."""
    path = parquet_path(name)
    pq.write_table(pq.read_table(path), path, row_group_size=2)
    assert parquet.has_metric_statistics(path)


def pack_as_before() -> None:
    pack_experiments()
    (pack,) = parquet_path("x").parent.glob("packs/*.parquet")
    pq.write_table(pq.read_table(pack), pack)


@pytest.fixture(params=["loose", "packed", "mixed", "live", "old", "old and packed", "old and new"])
def store(request: pytest.FixtureRequest) -> Iterator[str]:
    kind: str = request.param
    first = ("falls", "diverges", "never")
    live = log_all(lambda name: kind != "live" and (kind != "mixed" or name != "huge"))
    if kind == "packed":
        pack_experiments()
    elif kind == "mixed":
        for name in first:
            parquet_path(name).rename(parquet_path(name).with_suffix(".aside"))
        pack_experiments()
        for name in first:
            parquet_path(name).with_suffix(".aside").rename(parquet_path(name))
    elif kind == "old and packed":
        pack_as_before()
    elif kind.startswith("old"):
        for name in first if kind == "old and new" else LOSSES:
            write_as_before(name)
    yield kind
    for run in live:
        run.finish()


def table_in_memory() -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect(":memory:")
    connection.execute(
        "CREATE TABLE experiments (experiment_name VARCHAR, step BIGINT, split VARCHAR, loss DOUBLE, other DOUBLE)"
    )
    for name, losses in LOSSES.items():
        for step, loss in enumerate(losses):
            row = [name, step, "val" if step % 2 else "train", loss, float(step)]
            connection.execute("INSERT INTO experiments VALUES (?, ?, ?, ?, ?)", row)
    return connection


@pytest.mark.slow
def test_every_predicate_order_and_aggregate_answers_as_a_table_in_memory(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(get_experiments_dir())
    expected, found = table_in_memory(), connect(Catalogue(), "FROM experiments", 2**30)
    different = {
        query: answers
        for query in QUERIES
        if (answers := (answer(expected, query), answer(found, query)))[0] != answers[1]
    }
    assert not different


def answer(connection: duckdb.DuckDBPyConnection, query: str) -> str:
    rows = connection.execute(query).fetchall()
    # Zero and minus zero are equal: either may come first.
    return repr([[0.0 if value == 0 else value for value in row] for row in rows])


def test_only_whole_numbers_and_texts_have_statistics(tmp_path: Path) -> None:
    log_all(lambda name: True)
    exported = tmp_path / "all.parquet"  # others prune by statistics as well
    export_experiments(exported)
    pack_experiments()
    (pack,) = parquet_path("x").parent.glob("packs/*.parquet")
    for path in (exported, pack):
        group = pq.read_metadata(path).row_group(0)
        columns = map(group.column, range(group.num_columns))
        having = {column.path_in_schema for column in columns if column.is_stats_set}
        assert having == {"experiment_name", "step", "split"}
    count = f"SELECT count(*) FROM '{exported}' WHERE isnan(loss)"
    assert duckdb.sql(count).fetchall() == [(4,)]


def test_only_old_statistics_that_hide_a_nan_cost_the_pruning() -> None:
    log_all(lambda name: True)
    for name in ("falls", "diverges"):
        write_as_before(name)
    assert Catalogue().hiding_nan() == {"diverges.parquet"}
    loss = "SELECT loss FROM experiments WHERE experiment_name = 'falls'"
    ((_, plan),) = query_rows(f"EXPLAIN {loss}")[1]
    assert "Scanning Files: 1/5" in plan  # of the others
    pack_experiments()  # writes them anew
    assert not Catalogue().hiding_nan()
