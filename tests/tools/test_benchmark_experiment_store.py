"""`tools/benchmarks/experiment_store.py` on a small store: it measures, and leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common.experiments.catalogue import Catalogue
from common.experiments.packing import LOOSE_LIMIT
from common.experiments.sql import query_rows
from tools.benchmarks import generated_store
from tools.benchmarks.results import Row, Spread, as_table, limited, more_than

SCRIPT = "tools/benchmarks/experiment_store.py"
SMALL = ("--runs", 20, "--steps", 2000, "--calls", 500, "--repetitions", 1, "--no-peers")


@pytest.mark.slow
def test_every_line_of_the_table_is_measured(run_tool, tmp_path: Path) -> None:
    store = tmp_path / "store"
    result = run_tool(SCRIPT, *SMALL, "--store", store, "--format", "json")
    assert result.returncode == 0, result.stderr
    rows: dict[str, dict[str, Any]] = {row["work"]: row for row in json.loads(result.stdout)}
    limits = {work: row["limit"] for work, row in rows.items() if row["limit"]}
    assert limits == {
        "--list of 20, cold, beyond that": "<= 60",
        "--best of 20, cold, beyond that": "<= 60",
        "one run's curve by SQL, cold, beyond that": "<= 100",
        "scan of all 20,000 rows, in process": "<= 300",
        "run.log of 5 metrics, per call": "<= 30",
        "its growth from the first to the last": "<= 5",
    }
    assert all(rows[work]["met"] in ("yes", "no") for work in limits)
    assert all(row["ours"] is not None for row in rows.values())
    assert rows["empty Python process"]["ours"] > 0 < rows["run.log of 5 metrics, per call"]["ours"]
    assert {f"memory after {n} steps" for n in ("20", "200", "1,000", "2,000")} <= rows.keys()
    assert (store / "outputs" / "experiments").is_dir()

    other = run_tool(SCRIPT, "--runs", 30, "--no-peers", "--store", store)
    assert other.returncode == 2 and "holds 20 experiments, not 30" in other.stderr


def test_a_generated_store_is_as_the_product_lays_it_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.experiments.packing.LOOSE_LIMIT", 3)
    monkeypatch.setattr("common.experiments.packing.PACK_SIZE", 4)
    generated_store.ensure_store(9)
    catalogue = Catalogue()
    names = [generated_store.name_of(number) for number in range(9)]
    assert catalogue.names() == names and not catalogue.broken
    assert sorted(catalogue.packed()) == names[:6] and len(set(catalogue.packed().values())) == 2
    _, rows = query_rows("SELECT count(*), count(DISTINCT experiment_name) FROM experiments")
    assert rows == [[9 * generated_store.ROWS, 9]]
    assert set(catalogue.metrics()) == set(generated_store.METRICS)
    assert LOOSE_LIMIT == 512  # as tools/benchmarks/README.md says


def test_a_row_says_whether_its_limit_is_met() -> None:
    rows = [
        limited("a", "ms", Spread(60.004, 50.0), 60, {"mlflow": 1234.56}),
        limited("b", "ms", Spread(59.0, 50.0), 60, {"aim": "cannot be installed"}),
        Row("c", "s", 1.0),
    ]
    columns, cells = as_table(rows)
    assert columns == ["work", "unit", "ours", "minimum", "limit", "met", "mlflow", "aim"]
    assert [row[5] for row in cells] == ["no", "yes", None]
    assert [row[6] for row in cells] == [1235.0, None, None]
    assert cells[1][7] == "cannot be installed"


def test_what_is_beyond_an_empty_process_is_of_medians_and_of_minima() -> None:
    assert more_than([30.0, 20.0, 100.0], [9.0, 10.0, 11.0]) == Spread(20.0, 11.0)
