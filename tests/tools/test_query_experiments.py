"""`tools/query_experiments.py` as it is typed: answers, formats, mistakes."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from common.utils import save_experiment, start_experiment
from common.utils.paths import REPOSITORY_ROOT, get_experiments_dir

SCRIPT = "tools/query_experiments.py"


@pytest.fixture
def query(run_tool):
    def run(*arguments: str, code: int = 0, **options: Any) -> subprocess.CompletedProcess[str]:
        result = run_tool(SCRIPT, *arguments, **options)
        assert result.returncode == code, result.stdout + result.stderr
        assert "Traceback" not in result.stderr
        return result

    return run


@pytest.fixture(scope="module")
def saved_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("saved")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESEARCH_ASSETS_DIR", str(directory))
        for name, losses, project in [
            ("exp_001", [3.0, 2.0, 2.5], "alpha"),
            ("exp_002", [3.0, 1.0, math.nan], "beta"),
            ("exp_003", [3.0, 1.5, 1.25], "beta"),
        ]:
            frame = pd.DataFrame(
                {"step": [0, 10, 20], "split": "val", "loss": losses, "reward": [1.0, 2.0, 3.0]}
            )
            save_experiment(name, frame, metadata={"project": project, "config": {"lr": 0.1}})
    return directory


@pytest.fixture
def store(saved_store: Path, assets_dir: Path) -> None:
    shutil.copytree(saved_store, assets_dir)


def rows(result: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    parsed: list[dict[str, Any]] = json.loads(result.stdout)
    return parsed


@pytest.mark.parametrize(
    "arguments",
    [
        ["--list"],
        ["--summary"],
        ["--best", "loss"],
        ["--compare", "exp_001", "exp_003"],
    ],
    ids=lambda arguments: " ".join(arguments)[:30],
)
def test_every_answer_has_the_same_rows_in_every_format(query, store, arguments: list[str]) -> None:
    records = rows(query(*arguments, "--format", "json"))
    assert records
    parsed = list(csv.reader(io.StringIO(query(*arguments, "--format", "csv").stdout, newline="")))
    assert parsed[0] == list(records[0]) and len(parsed) == len(records) + 1
    markdown = query(*arguments, "--format", "markdown").stdout.splitlines()
    assert len(markdown) == len(records) + 2
    assert {line.replace("\\|", "").count("|") for line in markdown} == {len(parsed[0]) + 1}
    table = query(*arguments).stdout.splitlines()
    assert len(table) == len(records) + 2
    assert table[0].split() == parsed[0]


def test_the_list_tells_status_steps_and_the_best_loss(query, store) -> None:
    run = start_experiment("live", project="gamma")
    run.log({"loss": 9.0}, step=5)
    listed = {row["name"]: row for row in rows(query("--list", "--format", "json"))}
    run.finish()
    assert list(listed) == ["exp_001", "exp_002", "exp_003", "live"]
    assert (listed["exp_001"]["step"], listed["exp_001"]["best_loss"]) == (20, 2.0)
    assert (listed["live"]["status"], listed["live"]["step"]) == ("running", 5)
    assert listed["live"]["duration"] >= 0


def test_the_best_are_ranked_with_the_diverged_last(query, store) -> None:
    ranked = rows(query("--best", "loss", "--format", "json"))
    assert [row["name"] for row in ranked] == ["exp_003", "exp_001", "exp_002"]
    assert [row["rank"] for row in ranked] == [1, 2, 3]
    assert (ranked[0]["loss"], ranked[0]["step"], ranked[2]["status"]) == (1.25, 20, "diverged")
    assert len(rows(query("--best", "loss", "--top", "1", "--format", "json"))) == 1
    worst_first = rows(query("--best", "loss", "--max", "--top", "1", "--format", "json"))
    assert worst_first[0]["loss"] == 3.0


@pytest.mark.parametrize("top", ["0", "-1", "x", "1.5"])
def test_a_top_that_is_no_positive_number_is_refused(query, store, top: str) -> None:
    assert "--top" in query("--best", "loss", "--top", top, code=2).stderr


def test_a_comparison_names_the_better_one_but_never_a_diverged_one(query, store) -> None:
    loss, reward = rows(query("--compare", "exp_001", "exp_003", "--format", "json"))
    assert loss == {
        "metric": "loss",
        "split": "val",
        "value": "lowest",
        "exp_001": 2.0,
        "exp_003": 1.25,
        "better": "exp_003",
    }
    assert reward["value"] == "last" and reward["better"] is None, "its direction is not known"
    loss, _ = rows(query("--compare", "exp_001", "exp_002", "--format", "json"))
    assert loss["better"] != "exp_002", "--best ranks a diverged run last, so does --compare"


def test_the_summary_counts_and_names_the_best(query, store) -> None:
    result = query("--summary", "--format", "json")
    loss = next(row for row in rows(result) if row["metric"] == "loss")
    assert (loss["experiments"], loss["values"]) == (3, 9)
    assert (loss["best"], loss["best_experiment"]) == (1.25, "exp_003")
    assert "3 experiments (3 finished)" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--best", "los"], ["no experiment has a metric 'los'", "'loss'"]),
        (["--best", "reward"], ["reward", "--max or --min"]),
        (["--best", "loss", "--split", "tests"], ["split 'tests'", "val"]),
        (["--compare", "exp_001", "exp_01"], ["there is no experiment 'exp_01'", "'exp_001'"]),
        (["--sql", "SELECT lss FROM experiments"], ["lss", "loss"]),
        (["--sql", "SELEC 1"], ["SELEC"]),
        (["--sql", "DROP VIEW runs"], ["read-only"]),
        (["--sql", ""], ["SELECT"]),
        (["--sql", "SELECT * FROM '/etc/passwd'"], ["/etc/passwd"]),
        ([], ["--list"]),
        (["--list", "--summary"], ["not allowed"]),
        (["--best", "loss", "--max", "--min"], ["not allowed"]),
        (["--list", "--format", "xml"], ["xml", "markdown"]),
        (["--lst"], ["--list"]),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_a_mistake_is_told_in_a_line_with_exit_code_2(
    query, store, arguments: list[str], expected: list[str]
) -> None:
    result = query(*arguments, code=2)
    assert result.stdout == ""
    for text in expected:
        assert text in result.stderr
    if result.stderr.startswith("error ["):
        assert len(result.stderr.splitlines()) <= 2


@pytest.mark.parametrize("arguments", [["--list"], ["--summary"], ["--sql", "SELECT * FROM runs"]])
def test_an_empty_store_has_empty_tables(query, arguments: list[str]) -> None:
    assert rows(query(*arguments, "--format", "json")) == []


def test_an_empty_store_has_no_best_and_nothing_to_compare(query) -> None:
    assert "no experiments yet" in query("--best", "loss", code=2).stderr
    assert "no experiments yet" in query("--compare", "a", "b", code=2).stderr


def test_assets_below_a_regular_file_are_told_by_name(query, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    env = {"RESEARCH_ASSETS_DIR": str(tmp_path / "file" / "assets")}
    for arguments in (["--list"], ["--best", "loss"], ["--sql", "SELECT 1"]):
        result = query(*arguments, code=2, env=env)
        assert str(tmp_path / "file") in result.stderr
        assert len(result.stderr.splitlines()) <= 2


def test_a_broken_file_is_a_warning_and_the_answer_is_given(query, store) -> None:
    (get_experiments_dir() / "exp_002.parquet").write_bytes(b"PAR1")
    result = query("--list", "--format", "json")
    assert [row["name"] for row in rows(result)] == ["exp_001", "exp_003"]
    assert "warning" in result.stderr and "exp_002.parquet" in result.stderr
    result = query("--sql", "SELECT count(*) AS n FROM runs", "--format", "json")
    assert rows(result) == [{"n": 2}] and "exp_002.parquet" in result.stderr


def test_a_log_in_json_does_not_change_the_answer(query, store) -> None:
    (get_experiments_dir() / "exp_002.parquet").write_bytes(b"PAR1")
    result = query("--sql", "SELECT 1 AS n", "--format", "json", env={"RESEARCH_LOG": "json"})
    assert rows(result) == [{"n": 1}]
    assert json.loads(result.stderr)["level"] == "warning"


@pytest.mark.parametrize(
    "arguments", [["--list"], ["--sql", "SELECT range FROM range(20000)"]], ids=["short", "long"]
)
def test_a_reader_that_leaves_early_ends_it_quietly(store, arguments: list[str]) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)  # nobody reads: what `... | head -0` comes to
    result = subprocess.run(
        [sys.executable, str(REPOSITORY_ROOT / SCRIPT), *arguments],
        env={k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"},
        stdout=write_end,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    os.close(write_end)
    assert (result.stderr, result.returncode) == ("", 0)


def test_sums_dates_and_nans_are_valid_json(query, store) -> None:
    sql = (
        "SELECT sum(step) AS s, max(started) AS t, list(loss ORDER BY loss) AS l, max(loss) AS m "
        "FROM experiments JOIN runs ON name = experiment_name"
    )

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    text = query("--sql", sql, "--format", "json").stdout
    (record,) = json.loads(text, parse_constant=refuse)
    assert record["s"] == 90 and record["t"].startswith("20") and record["m"] is None


@pytest.fixture
def seeds_store() -> None:
    for lr, base in ((0.1, 2.0), (0.2, 1.5)):
        for seed in range(4):
            frame = pd.DataFrame({"split": "val", "loss": [base + 0.01 * seed], "reward": 1.0})
            metadata = {"config": {"optimizer": {"lr": lr}, "seed": seed}, "seed": seed}
            save_experiment(f"lr{lr}_{seed}", frame, metadata=metadata)


def test_groups_of_seeds_are_compared_with_a_verdict(query: Any, seeds_store: None) -> None:
    answer = rows(query("--compare", "lr0.1_0", "lr0.2_3", "--group", "--format", "json"))
    assert [(row["configuration"], row["runs"]) for row in answer] == [
        ("lr0.1_0", 4),
        ("lr0.2_3", 4),
    ]
    assert answer[0]["verdict"] is None
    assert answer[1]["verdict"] == "better" and answer[1]["p"] < 0.001
    assert answer[1]["difference"] == pytest.approx(-0.5) and answer[1]["more_seeds"] == 0
    table = query("--compare", "lr0.1_0", "lr0.2_0", "--group").stdout
    assert "not told apart" not in table and "better" in table
    refused = query("--list", "--group", code=2)
    assert "--group goes with --compare" in refused.stderr


def test_the_keys_that_differ_are_shown(query: Any, seeds_store: None) -> None:
    answer = rows(query("--diff", "lr0.1_0", "lr0.2_1", "--format", "json"))
    assert answer == [
        {"key": "optimizer.lr", "lr0.1_0": 0.1, "lr0.2_1": 0.2},
        {"key": "seed", "lr0.1_0": 0, "lr0.2_1": 1},
    ]
    assert "the same" in query("--diff", "lr0.1_0", "lr0.1_0").stderr
    assert "did you mean 'lr0.1_0'" in query("--diff", "lr0.1_0", "lr0.1_00", code=2).stderr


def test_tags_and_a_note_are_written_from_the_command_line(query: Any, store: None) -> None:
    assert "alpha, beta" in query("--tag", "exp_001", "alpha", "beta").stdout
    assert "alpha" not in query("--untag", "exp_001", "alpha").stdout
    (row,) = rows(query("--note", "exp_001", "look here", "--format", "json"))
    assert row == {"name": "exp_001", "tags": "beta", "note": "look here"}
    listed = rows(query("--list", "--format", "json"))
    assert [entry["tags"] for entry in listed] == ["beta", "", ""]
    assert "at least one tag" in query("--tag", "exp_001", code=2).stderr
    assert "did you mean 'exp_001'" in query("--tag", "exp_01", "x", code=2).stderr
