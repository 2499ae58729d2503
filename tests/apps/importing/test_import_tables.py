"""CSV, JSON lines and Parquet: what was exported comes back row for row."""

from __future__ import annotations

import csv
import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from apps.importing import import_experiments
from common.errors import ExperimentError
from common.experiments.rows import FIXED_COLUMNS
from common.experiments.store import parquet_path
from common.utils import save_experiment
from tests.imported_runs import (
    check_cuts,
    column,
    import_one,
    stored_manifest,
    stored_rows,
    stored_values,
    try_import,
)

Export = Callable[[Path, list[dict[str, Any]]], None]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8", newline="")
    return path


def columns_of(rows: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys([*FIXED_COLUMNS, *(key for row in rows for key in row)]))


def export_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns_of(rows), lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {k: repr(v) if isinstance(v, float) else v for k, v in row.items()} for row in rows
        )


def export_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def export_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    names = columns_of(rows)
    table = pa.table({name: [row.get(name) for row in rows] for name in names})
    pq.write_table(table, path, row_group_size=7)


def awkward_frame(seed: int, rows: int) -> pd.DataFrame:
    """Every kind of number that the store can hold, and rows of equal step and split."""
    source = random.Random(seed)
    odd = [math.nan, math.inf, -math.inf, -0.0, 5e-324, 1.7976931348623157e308, 0.1 + 0.2]
    frame = {
        "step": [source.choice([0, 1, 2, 2**63 - 1, -5]) for _ in range(rows)],
        "split": [source.choice(["train", "val", 'a, "b"\nc']) for _ in range(rows)],
        "epoch": [source.choice([None, source.random()]) for _ in range(rows)],
        "time": [source.random() * 100 for _ in range(rows)],
        "val/loss": [source.choice([*odd, source.gauss(0, 1)]) for _ in range(rows)],
        "é, quoted": [source.expovariate(1.0) for _ in range(rows)],
    }
    return pd.DataFrame(frame)


@pytest.mark.parametrize(
    ("ending", "export"),
    [(".csv", export_csv), (".jsonl", export_jsonl), (".parquet", export_parquet)],
)
def test_an_export_of_several_experiments_comes_back_row_for_row(
    ending: str, export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["exp_001", "exp_002", "third"]
    for seed, name in enumerate(names):
        save_experiment(name, awkward_frame(seed, rows=40 + seed))
    rows = [row for name in names for row in stored_rows(name)]
    export(tmp_path / f"all{ending}", rows)
    random.Random(0).shuffle(rows)  # rows of one experiment need not stand together
    export(tmp_path / f"mixed{ending}", rows)
    for source, kept in (("all", None), ("mixed", rows)):
        expected = {
            name: [r for r in kept if r["experiment_name"] == name] if kept else stored_rows(name)
            for name in names
        }
        with monkeypatch.context() as context:
            context.setenv("RESEARCH_ASSETS_DIR", str(tmp_path / f"other-{source}"))
            report = import_experiments(tmp_path / f"{source}{ending}")
            assert sorted(report.imported) == names, report
            for name in names:
                assert repr(stored_rows(name)) == repr(expected[name])
            assert len(import_experiments(tmp_path / f"{source}{ending}").skipped) == 3


def test_a_file_of_another_store_brings_its_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = pd.DataFrame({"step": [0, 1], "loss": [1.0, 0.5]})
    facts = {"project": "theirs", "config": {"lr": 0.1}, "tags": ["good"], "status": "failed"}
    shutil.copy(save_experiment("exp", frame, facts), tmp_path / "exp.parquet")
    before = stored_manifest("exp")
    monkeypatch.setenv("RESEARCH_ASSETS_DIR", str(tmp_path / "mine"))
    manifest = stored_manifest(import_one(tmp_path / "exp.parquet"))
    for key in ("project", "config", "status", "started", "host", "git_commit", "packages"):
        assert manifest[key] == before[key]
    assert manifest["tags"] == ["good", "imported"]


def test_a_plain_csv_is_one_experiment_named_as_its_file(tmp_path: Path) -> None:
    path = write(tmp_path / "my run.csv", "\ufeffStep,loss,acc\n0,1.5,\n10, 0.5 ,0.25\n")
    name = import_one(path, project="old")
    assert name == "my-run"
    assert column(name, "loss") == [(0, 1.5), (10, 0.5)]
    assert column(name, "acc") == [(10, 0.25)]
    manifest = stored_manifest(name)
    assert (manifest["project"], manifest["status"], manifest["host"]) == ("old", "finished", None)


def test_a_table_without_steps_counts_its_rows_per_experiment(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "run,loss\nx,1\ny,2\nx,3\n")
    assert import_experiments(tmp_path / "a.csv").imported == ["x", "y"]
    assert column("x", "loss") == [(0, 1.0), (1, 3.0)]
    assert column("y", "loss") == [(0, 2.0)]


def test_a_folder_of_tables_and_a_bad_one_among_them(tmp_path: Path) -> None:
    folder = tmp_path / "tables"
    folder.mkdir()
    write(folder / "a.csv", "step,loss\n0,1\n")
    write(folder / "b.csv", "step,loss,note\n0,1,\n1,2,good\n")
    write(folder / "c.jsonl", '{"step": 0, "loss": 1}\n')
    write(folder / "readme.txt", "not a table")
    report = import_experiments(folder)
    assert report.imported == ["a", "c"]
    ((_, why),) = report.refused
    assert (
        why
        == f"{folder / 'b.csv'}, line 3: column 'note' must contain numbers, got 'good' (hint: remove columns that are not metrics)"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step,loss\n0,1,2\n", "line 2: 3 cells for 2 columns"),
        ("step,loss\n0.5,1\n", "line 2: 'step' must be a 64-bit integer"),
        ("step,loss\n,1\n", "line 2: 'step' must be a 64-bit integer"),
        ("loss,loss\n0,1\n", "has two columns 'loss'"),
        ("run,loss\n,1\n", "line 2: column 'run' is empty"),
        ("loss\n1_000\n", "line 2: column 'loss' must contain numbers"),
        ('loss\n"1\n2"\n', "line 2: column 'loss' must contain numbers"),
        ("loss\n\xff\n", "invalid"),
        ("step,loss\n", "found nothing to import"),
        ("", "found nothing to import"),
    ],
)
def test_what_is_wrong_with_a_csv_is_said_with_its_line(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(text.encode("latin-1"))
    report = try_import(path)
    assert not report.imported
    assert message in report.refused[0][1]


def test_metrics_that_our_store_refuses_are_renamed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "a.csv", "step,Loss,loss,STEP2\n0,1,2,3\n")
    (row,) = stored_rows(import_one(path))
    assert (row["Loss"], row["loss_2"], row["STEP2"]) == (1.0, 2.0, 3.0)
    assert "a: renamed metrics: 'loss' is 'loss_2'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("ending", "export"),
    [(".csv", export_csv), (".jsonl", export_jsonl), (".parquet", export_parquet)],
)
def test_a_cut_table_gives_whole_rows_or_is_refused(
    ending: str, export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The last column has one digit, so that no cut leaves another number there.
    rows = [
        {"step": s, "split": "train", "loss": 1 / (s + 3), "k": float(s % 5)} for s in range(30)
    ]
    rows = [{"experiment_name": f"e{row['step'] // 15}", **row} for row in rows]
    path = tmp_path / f"table{ending}"
    export(path, rows)
    whole = {v for name in import_experiments(path).imported for v in stored_values(name)}
    stores = iter(range(1000))

    def fresh_store() -> None:
        monkeypatch.setenv("RESEARCH_ASSETS_DIR", str(tmp_path / f"assets{next(stores)}"))

    counts = check_cuts(path, path, whole, fresh_store)
    if ending != ".parquet":  # whose end says where everything is
        assert max(counts[:-1]) > len(whole) / 2


def test_our_store_knows_nothing_of_a_source_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="no such file or folder") as caught:
        import_experiments(tmp_path / "none")
    assert "TensorBoard" in caught.value.hint
    assert not parquet_path("none").exists()
