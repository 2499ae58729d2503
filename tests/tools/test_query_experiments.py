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

pytestmark = pytest.mark.slow  # seventy commands
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


def save_quick(name: str, losses: list[float], full: float | None = None) -> None:
    splits = ["val_quick"] * len(losses) + ["val"] * (full is not None)
    values = losses + ([] if full is None else [full])
    save_experiment(name, pd.DataFrame({"split": splits, "loss": values}))


def test_a_run_evaluated_on_few_batches_alone_is_shown_as_such(query, store) -> None:
    save_quick("whole", [1.3085], full=1.3561)
    save_quick("going", [1.1])
    result = query("--best", "loss", "--format", "json")
    ranked = [(row["name"], row["loss"], row["split"]) for row in rows(result)]
    assert ranked[:3] == [
        ("exp_003", 1.25, "val"),
        ("whole", 1.3561, "val"),
        ("exp_001", 2.0, "val"),
    ]
    assert ranked[3] == ("going", 1.1, "val_quick")
    assert "not yet evaluated on the whole of val: going;" in result.stderr
    # Also where it is beyond the rows that are shown.
    assert "going;" in query("--best", "loss", "--top", "1").stderr
    assert "going" not in query("--best", "loss", "--split", "val").stderr
    listed = {row["name"]: row for row in rows(query("--list", "--format", "json"))}
    assert (listed["going"]["best_loss"], listed["going"]["split"]) == (1.1, "val_quick")
    assert (listed["whole"]["best_loss"], listed["whole"]["split"]) == (1.3561, "val")
    lines = query("--list").stdout.splitlines()
    assert lines[0].split()[-3:] == ["best_loss", "split", "tags"] and "val_quick" in lines[-1]
    compared = rows(query("--compare", "whole", "going", "--format", "json"))
    found = [(row["split"], row["name"], row["difference"]) for row in compared]
    assert found[0] == ("val", "whole", None) and found[1] == ("val_quick", "whole", None)
    assert found[2] == ("val_quick", "going", pytest.approx(1.1 - 1.3085))


def test_val_with_few_batches_of_an_earlier_version_is_ranked_with_a_note(query, store) -> None:
    frame = pd.DataFrame({"split": "val", "loss": [1.2, 1.4]})
    facts = {"config": {"training": {"eval_batches": 2}}, "data_fingerprint": {"val": "x"}}
    save_experiment("earlier", frame, metadata=facts)
    result = query("--best", "loss", "--format", "json")
    assert (rows(result)[0]["name"], rows(result)[0]["loss"]) == ("earlier", 1.2)
    assert "val also has values of few batches, from an earlier version: earlier" in result.stderr


@pytest.mark.slow
def test_several_runs_are_drawn_on_the_way_and_at_the_end(query, store) -> None:
    save_quick("a", [3.0, 2.0], full=1.5)
    save_quick("b", [3.0, 2.5])
    drawn = query("--plot", "loss", "a", "b").stdout
    for label in ("a (val_quick)", "a (val)", "b (val_quick)"):
        assert label in drawn
    assert "val_quick" not in query("--plot", "loss", "exp_001", "exp_003").stdout


@pytest.mark.parametrize("top", ["0", "-1", "x", "1.5"])
def test_a_top_that_is_no_positive_number_is_refused(query, store, top: str) -> None:
    assert "--top" in query("--best", "loss", "--top", top, code=2).stderr


def test_a_comparison_of_single_runs_says_by_how_much_they_differ_and_not_which_is_better(
    query, store
) -> None:
    result = query("--compare", "exp_001", "exp_003", "--format", "json")
    assert "single runs: seeds alone can cause such differences" in result.stderr
    answer = rows(result)
    base, loss = [row for row in answer if row["metric"] == "loss"]
    assert base == {
        "metric": "loss",
        "split": "val",
        "better_is": "lower",
        "name": "exp_001",
        "best": 2.0,
        "step": 10,
        "last": 2.5,
        "difference": None,
        "verdict": None,
    }
    assert (loss["name"], loss["best"], loss["difference"]) == ("exp_003", 1.25, -0.75)
    assert loss["verdict"] == "lower"
    reward = [row for row in answer if row["metric"] == "reward"][-1]
    assert reward["better_is"] is None and reward["verdict"] == "equal"
    diverged = rows(query("--compare", "exp_001", "exp_002", "--format", "json"))[1]
    assert diverged["verdict"] == "diverged", "--best ranks it last, so does --compare"


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
    assert [(row["configuration"], row["seeds"]) for row in answer] == [
        ("lr0.1_0", 4),
        ("lr0.2_3", 4),
    ]
    assert answer[0]["verdict"] is None
    assert answer[1]["verdict"] == "better" and answer[1]["p"] < 0.001
    assert answer[1]["difference"] == pytest.approx(-0.5) and answer[1]["more_seeds"] == 0
    table = query("--compare", "lr0.1_0", "lr0.2_0", "--group").stdout
    assert "not told apart" not in table and "better" in table
    refused = query("--list", "--group", code=2)
    assert "--group requires --compare" in refused.stderr


def test_the_keys_that_differ_are_shown(query: Any, seeds_store: None) -> None:
    answer = rows(query("--diff", "lr0.1_0", "lr0.2_1", "--format", "json"))
    assert answer == [
        {"key": "optimizer.lr", "lr0.1_0": 0.1, "lr0.2_1": 0.2},
        {"key": "seed", "lr0.1_0": 0, "lr0.2_1": 1},
    ]
    assert "the same" in query("--diff", "lr0.1_0", "lr0.1_0").stderr
    assert "did you mean 'lr0.1_0'" in query("--diff", "lr0.1_0", "lr0.1_00", code=2).stderr


def test_what_besides_the_configuration_differs_is_shown(query: Any) -> None:
    for name, precision, tokenizer in (("a", "bf32", "x" * 64), ("b", "fp32", "y" * 64)):
        frame = pd.DataFrame({"split": "val", "loss": [2.0], "bits_per_byte": [1.0]})
        facts = {"precision": precision, "threads": 2, "tokenizer": tokenizer}
        save_experiment(name, frame, metadata={"config": {"lr": 1}, **facts})
    answer = rows(query("--diff", "a", "b", "--format", "json"))
    assert answer == [
        {"key": "precision", "a": "bf32", "b": "fp32"},
        {"key": "tokenizer", "a": "x" * 64, "b": "y" * 64},
    ]
    result = query("--compare", "a", "b", "--format", "json")
    assert "precision differs: bf32 (a), fp32 (b)" in result.stderr
    verdicts = {row["metric"]: row["verdict"] for row in rows(result) if row["name"] == "b"}
    assert verdicts == {"bits_per_byte": "equal", "loss": "not compared: another tokenizer"}


def test_tags_and_a_note_are_written_from_the_command_line(query: Any, store: None) -> None:
    assert "alpha, beta" in query("--tag", "exp_001", "alpha", "beta").stdout
    assert "alpha" not in query("--untag", "exp_001", "alpha").stdout
    (row,) = rows(query("--note", "exp_001", "look here", "--format", "json"))
    assert row == {"name": "exp_001", "tags": "beta", "note": "look here"}
    listed = rows(query("--list", "--format", "json"))
    assert [entry["tags"] for entry in listed] == ["beta", "", ""]
    assert "at least one tag" in query("--tag", "exp_001", code=2).stderr
    assert "did you mean 'exp_001'" in query("--tag", "exp_01", "x", code=2).stderr


@pytest.mark.slow
def test_curves_are_drawn_in_the_terminal_and_to_a_file(query, store, tmp_path: Path) -> None:
    drawn = query("--plot", "loss", "exp_001", "exp_002", "--output", str(tmp_path / "p.png"))
    assert "exp_001 (val)" in drawn.stdout and "exp_002 (val), 1 not finite" in drawn.stdout
    assert "\x1b" not in drawn.stdout, "no colours where there is no terminal"
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert "exp_003 (val)" in query("--plot", "loss").stdout, "the best, without names"
    assert "'loss'" in query("--plot", "los", "exp_001", code=2).stderr
    assert "split 'test'" in query("--plot", "loss", "--split", "test", code=2).stderr


def test_archived_experiments_are_out_of_sight_until_they_are_wanted(query, store) -> None:
    assert query("--archive", "exp_003", "exp_001").stdout == "archived: exp_003, exp_001\n"
    assert [row["name"] for row in rows(query("--list", "--format", "json"))] == ["exp_002"]
    assert len(rows(query("--list", "--archived", "--format", "json"))) == 3
    assert [row["name"] for row in rows(query("--best", "loss", "--format", "json"))] == ["exp_002"]
    query("--unarchive", "exp_003")
    assert rows(query("--best", "loss", "--format", "json"))[0]["name"] == "exp_003"
    assert "'exp_002'" in query("--archive", "exp_003", "exp_02", code=2).stderr
    assert len(rows(query("--list", "--format", "json"))) == 2, "nothing was archived by half"


def test_deleting_asks_first_and_takes_the_runs_folder_with_it(
    query, store, assets_dir: Path
) -> None:
    folder = assets_dir / "outputs" / "runs" / "exp_002"
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(bytes(2**20))
    assert "add --yes" in query("--delete", "exp_002", code=2).stderr
    assert "no experiment 'x'" in query("--delete", "exp_002", "x", "--yes", code=2).stderr
    assert folder.exists()
    query("--tag", "exp_002", "old")
    deleted = query("--delete", "exp_002", "--yes").stdout
    assert deleted.startswith("deleted exp_002 (1.") and not folder.exists()
    assert len(rows(query("--list", "--format", "json"))) == 2
    save_experiment("exp_002", pd.DataFrame({"loss": [1.0]}))
    assert rows(query("--list", "--format", "json"))[-1]["tags"] == "", "a new one of that name"


def test_a_running_experiment_is_not_deleted(query, store) -> None:
    with start_experiment("live") as run:
        run.log({"loss": 1.0}, step=0)
        assert "is running" in query("--delete", "live", "--yes", code=2).stderr
    assert "deleted live" in query("--delete", "live", "--yes").stdout


@pytest.mark.slow
def test_packs_are_made_and_undone_by_hand(query, store) -> None:
    before = query("--list", "--format", "json").stdout
    assert query("--pack").stdout == "packed 3 experiments\n"
    assert query("--list", "--format", "json").stdout == before
    assert "exp_002.parquet" in query("--unpack", "exp_002").stdout
    query("--delete", "exp_001", "--yes")
    assert [row["name"] for row in rows(query("--list", "--format", "json"))] == [
        "exp_002",
        "exp_003",
    ]


def test_the_check_names_what_is_damaged_and_mends_what_it_can(query, store) -> None:
    sound = query("--check")
    assert (
        "every file of the store is intact" in sound.stderr and len(sound.stdout.split("\n")) == 3
    )
    left = get_experiments_dir() / "exp_001.jsonl"
    left.touch()
    damaged = get_experiments_dir() / "exp_002.parquet"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    result = query("--check", "--format", "json", code=2)
    found = {row["file"]: row["action"] for row in rows(result)}
    assert found["exp_001.jsonl"] == "removed" and not left.exists()
    assert "restore it" in found["exp_002.parquet"] and damaged.read_bytes() == content
    assert "1 files of the store need attention" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_what_is_exported_comes_back_the_same(query, store, tmp_path: Path, ending: str) -> None:
    asked = "SELECT * FROM experiments ORDER BY ALL"
    before = query("--sql", asked, "--format", "csv").stdout
    query("--pack")
    query("--unpack", "exp_003")
    file = tmp_path / f"all.{ending}"
    assert "wrote 3 experiments" in query("--export", str(file)).stdout
    assert "exists" in query("--export", str(file), code=2).stderr
    query("--delete", "exp_001", "exp_002", "exp_003", "--yes")
    imported = rows(query("--import", str(file), "--format", "json"))
    assert [row["experiment"] for row in imported] == ["exp_001", "exp_002", "exp_003"]
    assert query("--sql", asked, "--format", "csv").stdout == before


def test_json_holds_the_manifests_too(query, store, tmp_path: Path) -> None:
    query("--export", str(tmp_path / "two.json"), "exp_002", "exp_001")
    second, first = json.loads((tmp_path / "two.json").read_text())
    assert (first["name"], first["project"], first["config"]) == ("exp_001", "alpha", {"lr": 0.1})
    assert second["rows"][2]["metrics"]["loss"] == "NaN" and first["rows"][2]["step"] == 20
    assert ".csv, .json, .parquet" in query("--export", "x.txt", code=2).stderr
    assert "no experiment 'x'" in query("--export", str(tmp_path / "x.csv"), "x", code=2).stderr


def test_nothing_to_import_is_told(query, tmp_path: Path) -> None:
    assert "error [experiment]" in query("--import", str(tmp_path), code=2).stderr
    assert "error [experiment]" in query("--import", str(tmp_path / "none"), code=2).stderr


def test_an_object_store_is_needed_to_sync(query) -> None:
    assert "RESEARCH_EXPERIMENTS_URI is not set" in query("--sync", code=2).stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--list", "--yes"], "--yes requires --delete"),
        (["--list", "--split", "val"], "--split requires --best or --plot"),
        (["--sql", "SELECT 1", "--limit", "0"], "--limit must be more than 0"),
        (["--list", "--summary"], "not allowed with"),
        ([], "one of the arguments"),
    ],
)
def test_options_without_their_action_are_mistakes(
    query, arguments: list[str], expected: str
) -> None:
    assert expected in query(*arguments, code=2).stderr


HOSTILE = "x\x1b]0;title\x07\x1b[2J\x9b31m\r\u202e"


@pytest.fixture
def hostile_store() -> None:
    metadata = {
        "project": HOSTILE,
        "config": {HOSTILE: HOSTILE},
        "note": HOSTILE,
        "tags": [HOSTILE],
    }
    save_experiment("a", pd.DataFrame({HOSTILE: [1.0], "split": HOSTILE}), metadata=metadata)
    save_experiment("b", pd.DataFrame({"loss": [1.0]}), metadata={"config": {HOSTILE: 1}})
    (get_experiments_dir() / "c\x1b[31m.parquet").write_bytes(b"")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--list"],
        ["--list", "--format", "markdown"],
        ["--summary"],
        ["--best", HOSTILE, "--min"],
        ["--best", f"{HOSTILE}y", "--min"],
        ["--best", "loss", "--split", HOSTILE],
        ["--compare", "a", "b"],
        ["--diff", "a", "b"],
        ["--note", "a", HOSTILE],
        ["--sql", "SELECT * FROM runs"],
        ["--sql", f"SELECT '{HOSTILE}' AS c"],
        ["--sql", f'SELECT "{HOSTILE}"'],
        ["--import", f"nothing{HOSTILE}"],
    ],
    ids=lambda arguments: " ".join(arguments[:1]),
)
@pytest.mark.usefixtures("hostile_store")
def test_nothing_that_is_stored_steers_the_terminal(run_tool, arguments: list[str]) -> None:
    result = run_tool(SCRIPT, *arguments)
    shown = result.stdout + result.stderr
    assert not [c for c in shown if not c.isprintable() and c != "\n"]
    assert r"\x1b[" in shown


@pytest.mark.usefixtures("hostile_store")
def test_csv_keeps_every_character_for_a_file_and_is_harmless_on_a_terminal(query) -> None:
    arguments = ["--sql", "SELECT note FROM runs WHERE name = 'a'", "--format", "csv"]
    piped = subprocess.run(
        [sys.executable, SCRIPT, *arguments], capture_output=True, cwd=REPOSITORY_ROOT
    )
    assert HOSTILE in piped.stdout.decode()
    parent, child = os.openpty()
    command = [sys.executable, SCRIPT, *arguments]
    subprocess.run(
        command, stdout=child, stderr=subprocess.DEVNULL, cwd=REPOSITORY_ROOT, check=True
    )
    os.close(child)
    shown = os.read(parent, 65536).decode()
    os.close(parent)
    assert "\x1b" not in shown and r"\x1b[2J" in shown
