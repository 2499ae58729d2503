"""What an import does to our store: names, a second import, and what a refused run leaves behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from apps.importing import import_experiments
from common.experiments.catalogue import Catalogue
from common.utils import query_experiments, save_experiment
from common.utils.paths import get_experiments_dir
from tests.imported_runs import import_one, stored_manifest, stored_rows


def write_csv(folder: Path, name: str, loss: float = 1.0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.csv"
    path.write_text(f"step,loss\n0,{loss}\n", encoding="utf-8")
    return path


def test_a_second_import_of_the_same_run_is_skipped_wherever_it_lies(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a", "exp")
    assert import_experiments(path).imported == ["exp"]
    again = import_experiments(path)
    moved = import_experiments(path.replace(write_csv(tmp_path / "b", "exp", loss=2.0)))
    for report in (again, moved):
        assert report.imported == []
        assert [why for _, why in report.skipped] == ["already imported as 'exp'"]


@pytest.mark.parametrize("on_conflict", ["rename", "skip"])
def test_another_experiment_of_the_same_name_is_never_touched(
    tmp_path: Path, on_conflict: str
) -> None:
    save_experiment("exp", pd.DataFrame({"step": [0], "loss": [0.5]}))
    for folder, loss in (("a", 1.0), ("b", 2.0)):
        path = write_csv(tmp_path / folder, "exp", loss)
        report = import_experiments(path, on_conflict=on_conflict)  # type: ignore[arg-type]
        if on_conflict == "skip":
            assert report.skipped == [(f"{path} (exp)", "the name 'exp' is taken")]
    assert stored_rows("exp")[0]["loss"] == 0.5
    names = {manifest["name"] for manifest in Catalogue().manifests}
    assert names == ({"exp", "exp-2", "exp-3"} if on_conflict == "rename" else {"exp"})


@pytest.mark.parametrize(
    ("foreign", "ours"),
    [
        ("lr 0.1 [seed 1]", "lr-0.1-seed-1"),
        ("..hidden", "hidden"),
        ("größe", "gr-e"),
        ("日本", "imported"),
        ("x" * 200, "x" * 128),
    ],
)
def test_names_that_our_store_refuses_are_made_valid(
    tmp_path: Path, foreign: str, ours: str
) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"run,loss\n{foreign},1\n", encoding="utf-8")
    assert import_one(path) == ours


def test_names_that_become_the_same_are_kept_apart(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    rows = "".join(f"{'x' * 140}{number},{number}\n" for number in range(3))
    path.write_text(f"run,loss\n{rows}", encoding="utf-8")
    assert import_experiments(path).imported == ["x" * 128, "x" * 126 + "-2", "x" * 126 + "-3"]
    assert import_experiments(path).imported == []


def test_questions_can_be_asked_of_an_imported_run(tmp_path: Path) -> None:
    write_csv(tmp_path / "a", "exp")
    import_one(tmp_path / "a")
    runs = query_experiments("SELECT name, status, host, git_commit, tags FROM runs")
    assert runs["name"].tolist() == ["exp"]
    assert runs["host"].isna().all() and runs["git_commit"].isna().all()
    assert Catalogue().best("loss")[0][1].minimum == 1.0


def test_a_run_that_is_refused_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("step,note\n0,hello\n", encoding="utf-8")
    report = import_experiments(tmp_path / "a.csv")
    assert not report.imported and len(report.refused) == 1
    assert [path.name for path in get_experiments_dir().glob("[!.]*")] == []


def test_a_file_that_cannot_be_written_leaves_no_claimed_name(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a", "exp")
    in_the_way = get_experiments_dir() / f".exp.parquet.{os.getpid()}.tmp"
    in_the_way.mkdir(parents=True)
    with pytest.raises(OSError):
        import_experiments(path)
    in_the_way.rmdir()
    assert import_one(path) == "exp"


def test_the_source_is_recorded(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a", "exp")
    source = stored_manifest(import_one(path))["source"]
    assert (source["kind"], source["path"], source["id"]) == ("csv", str(path), "exp")
    assert len(source["fingerprint"]) == 64


def test_the_importer_is_imported_without_heavy_packages() -> None:
    heavy = "{'torch', 'pandas', 'duckdb', 'numpy', 'pyarrow', 'tensorboard', 'wandb', 'yaml'}"
    code = (
        "import sys, apps.importing\n"
        f"assert not {heavy} & sys.modules.keys(), {heavy} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
