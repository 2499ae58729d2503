"""The benchmark of loading: every contestant loads the same weights, and each line has its figures."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.conftest import RunTool

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]


def test_every_line_of_the_table_is_measured(run_tool: RunTool, tmp_path: Path) -> None:
    small = ("--megabytes", "2", "--rounds", "1", "--families", "gpt2", "--caches", "cold")
    written = ("--json", str(tmp_path / "a.json"), "--format", "json")
    result = run_tool("tools/benchmarks/load_weights.py", *small, *written)
    assert result.returncode == 0, result.stderr
    rows = json.loads(result.stdout)
    assert len(rows) == 14 and all(row["ours"] > 0 for row in rows)
    turns = json.loads((tmp_path / "a.json").read_text())["measured"]["gpt2, cold"]
    sizes = {name: {turn["tensor_bytes"] for turn in found} for name, found in turns.items()}
    (weights,) = sizes["ours"]
    assert sizes["transformers"] == sizes["load_file"] == sizes["load_file_pread"] == {weights}
    assert sizes["ours_float32"] == sizes["transformers_float32"] == {2 * weights}
    (files,) = sizes["read_into_one_buffer"]
    assert weights < files < 1.05 * weights  # the headers are all that is added
