"""`tools/test_env.py` finds a machine in order, and says what is not."""

from __future__ import annotations

from pathlib import Path

import pytest

SCRIPT = "tools/test_env.py"


@pytest.mark.slow
def test_an_environment_in_order_passes_every_check(run_tool, assets_dir: Path) -> None:
    result = run_tool(SCRIPT)
    assert result.returncode == 0, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["check", "result", "details"]
    results = {line[:16].strip(): line.split()[-1] for line in lines[2:]}
    assert len(lines) == 2 + 7 and "FAIL" not in result.stdout
    assert str(assets_dir) in result.stdout and "BaseLanguageModel" in result.stdout
    assert results


@pytest.mark.slow
def test_assets_that_cannot_be_written_fail_with_the_way_out(run_tool, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    result = run_tool(SCRIPT, env={"RESEARCH_ASSETS_DIR": str(tmp_path / "file" / "assets")})
    assert result.returncode == 1 and "Traceback" not in result.stderr
    failed = [line for line in result.stdout.splitlines() if "FAIL" in line]
    assert len(failed) == 1 and failed[0].startswith("assets folder")
    assert "RESEARCH_ASSETS_DIR" in failed[0]
    assert "1 failed: assets folder" in result.stderr


def test_help_says_what_the_exit_code_means(run_tool) -> None:
    result = run_tool(SCRIPT, "--help")
    assert result.returncode == 0 and "exits with 1" in result.stdout
    assert run_tool(SCRIPT, "--nonsense").returncode == 2
