"""The share of the library that the research reaches: it may only grow."""

from __future__ import annotations

from tests.conftest import RunTool
from tools.library_size import measure


def test_projects_and_papers_reach_most_of_the_library() -> None:
    size = measure()
    assert {
        "common.training.trainer",
        "common.data.prepare",
        "common.experiments.run",
    } <= size.reached
    assert size.share >= 0.95


def test_a_module_that_only_an_app_imports_is_not_reached() -> None:
    size = measure()
    assert "common.experiments.annotate" in size.lines.keys() - size.reached


def test_the_tool_prints_packages_and_what_is_not_reached(run_tool: RunTool) -> None:
    shown = run_tool("tools/library_size.py").stdout
    assert "common.experiments" in shown and "common.experiments.annotate (" in shown
