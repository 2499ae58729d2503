"""The benchmark of the mixers: every line of its table is measured beside attention in the same run."""

from __future__ import annotations

import json

import pytest

from tests.conftest import RunTool


@pytest.mark.slow
def test_every_line_of_the_table_is_measured(run_tool: RunTool) -> None:
    small = ("--mixers", "min_gru", "--rounds", "1", "--long", "64")
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


@pytest.mark.slow
def test_peers_with_the_same_weights_agree_and_missing_ones_are_named(run_tool: RunTool) -> None:
    given = ("--peers", "transformers", "mambapy", "--mixers", "gated_delta_net", "--width", "32")
    given += ("--rounds", "1", "--threads", "1", "--at-most", "1000", "--format", "json")
    result = run_tool("tools/benchmarks/mixer_peers.py", *given)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    rows = [row for row in found if row["mixer"] is not None]
    for missing in (row for row in found if row["mixer"] is None):
        assert missing["peer"] == "mambapy" and "pip install" in missing["note"]
    assert {row["work"] for row in rows} == {"training, 8 x 256", "training, 1 x 2048"}
    for row in rows:
        assert row["ours, ms"] > 0 and row["peer, ms"] > 0
        assert row["output difference"] < 1e-4 * row["largest output"]
        assert row["gradient difference"] < 1e-4 * row["largest gradient"]
