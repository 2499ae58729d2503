"""The benchmark of the mixers: every line of its table is measured beside attention in the same run."""

from __future__ import annotations

import json

import pytest

from tests.conftest import RunTool


@pytest.mark.slow
def test_every_line_of_the_table_is_measured(run_tool: RunTool) -> None:
    small = ("--mixers", "min_gru", "--rounds", "1", "--long", "64", "--no-peers")
    result = run_tool("tools/benchmarks/mixers.py", *small, "--threads", "1", "--format", "json")
    assert result.returncode == 0, result.stderr
    rows = json.loads(result.stdout)
    assert {row["contestant"] for row in rows} >= {"attention", "min_gru", "swiglu", "moe"}
    assert {row["work"] for row in rows} == {
        "training, 8 x 256",
        "training, 1 x 2048",
        "a generated token, 4 x 128",
    }
    firsts = {(row["work"], row["contestant"]): row["ms"] for row in rows}
    for row in rows:
        assert row["ms"] > 0
        expected = row["ms"] / firsts[row["work"], row["beside"]]
        assert row["ratio"] == pytest.approx(expected, abs=0.06)
