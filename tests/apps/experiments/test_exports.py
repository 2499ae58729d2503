"""Exports: what other programs, and another store of ours, read back."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from apps.experiments.exports import export_experiments
from apps.importing import import_experiments
from common.errors import ExperimentError
from common.experiments.annotate import annotate_experiment
from common.experiments.catalogue import Catalogue
from common.experiments.packing import pack_experiments
from common.experiments.sql import query_rows
from common.utils import save_experiment, start_experiment

CONFIG = {
    "model": {"layers": 4, "name": 'é, "x"'},
    "lr": 1e-3,
    "betas": [0.9, 0.95],
    "a.b": True,
    "no": {},
}
ROWS = "SELECT * FROM experiments ORDER BY experiment_name, step"


def fill_store() -> None:
    frame = pd.DataFrame(
        {
            "step": [0, 1, 2, 3],
            "split": ["train", "val", "train", "val"],
            "epoch": [0.0, 0.5, 1.0, 1.5],
            "loss": [math.nan, 1e308, -0.0, math.inf],
            "name": [5e-324, -math.inf, math.nan, 0.1 + 0.2],
        }
    )
    metadata = {"config": CONFIG, "seed": 3, "project": "p", "tags": ["x"], "parameters": 12}
    save_experiment("a", frame, metadata=metadata)
    save_experiment("packed", frame.assign(loss=1.0), metadata={"config": {"lr": 2}})
    pack_experiments()
    with start_experiment("empty") as run:
        run.log({}, step=0)
    with start_experiment("b", config={"lr": 0.1}) as run:
        run.log({"bleu": 1.0}, step=7)
    annotate_experiment("a", add_tags=["later, with a comma"], note="a \x1b note")


def facts() -> dict[str, Any]:
    keys = (
        "status",
        "project",
        "config",
        "seed",
        "parameters",
        "started",
        "note",
        "host",
    )
    return {m["name"]: {key: m.get(key) for key in keys} for m in Catalogue().manifests}


def test_the_json_export_comes_back_with_all_that_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_store()
    rows, known = query_rows(ROWS), facts()
    assert export_experiments(tmp_path / "all.json") == 4
    monkeypatch.setenv("RESEARCH_ASSETS_DIR", str(tmp_path / "other"))
    report = import_experiments(tmp_path / "all.json")
    assert sorted(report.imported) == ["a", "b", "empty", "packed"] and not report.refused
    assert sorted(rows[0]) == sorted(query_rows(ROWS)[0])
    columns = ", ".join(f'"{column}"' for column in rows[0])
    back = query_rows(f"SELECT {columns} FROM experiments ORDER BY experiment_name, step")[1]
    assert repr(back) == repr(rows[1])
    assert facts() == known
    assert Catalogue().manifest("a")["tags"] == ["x", "later, with a comma", "imported"]
    assert len(import_experiments(tmp_path / "all.json").skipped) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "not an export of experiments"),
        ("{}", "not an export of experiments"),
        ('[{"name": "a"}]', "not an export of experiments"),
        ("[", "cannot read"),
        ("[" * 100_000, "cannot read"),
        ("\udcff", "cannot read"),
    ],
)
def test_another_json_is_refused_in_one_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ExperimentError, match=message):
        import_experiments(path)


def test_a_damaged_experiment_is_refused_and_the_others_come(tmp_path: Path) -> None:
    row = {"step": 0, "split": "val", "epoch": None, "time": None, "metrics": {"loss": "NaN"}}
    entries = [{"name": "a", "rows": [row]}, {"name": "b", "rows": [{"step": 0}]}]
    entries += [{"name": "c", "rows": [row | {"metrics": {"loss": "low"}}]}]
    (tmp_path / "x.json").write_text(json.dumps(entries))
    report = import_experiments(tmp_path / "x.json")
    assert report.imported == ["a"] and len(report.refused) == 2
    assert query_rows("SELECT isnan(loss) FROM experiments")[1] == [[True]]


def test_the_csv_export_has_configurations_and_tags_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_store()
    assert export_experiments(tmp_path / "all.csv", ["a", "packed"]) == 2
    with (tmp_path / "all.runs.csv").open(newline="", encoding="utf-8") as file:
        runs = {row["name"]: row for row in csv.DictReader(file)}
    assert json.loads(runs["a"]["tags"]) == ["x", "later, with a comma"]
    assert runs["a"]["note"] == "a \x1b note" and runs["a"]["seed"] == "3"
    assert runs["a"]["config.lr"] == "0.001" and runs["packed"]["config.lr"] == "2"
    assert runs["a"]["config.model.name"] == 'é, "x"' and runs["a"]['config."a.b"'] == "True"
    assert json.loads(runs["a"]["config.betas"]) == [0.9, 0.95] and runs["a"]["config.no"] == "{}"
    assert runs["packed"]["config.model.layers"] == ""
    with pytest.raises(ExperimentError, match="exists"):
        export_experiments(tmp_path / "all.csv")
    (tmp_path / "all.csv").unlink()
    with pytest.raises(ExperimentError, match=r"all\.runs\.csv exists"):
        export_experiments(tmp_path / "all.csv")
    (tmp_path / "all.runs.csv").rename(tmp_path / "other.runs.csv")
    export_experiments(tmp_path / "all.csv", ["b"])
    monkeypatch.setenv("RESEARCH_ASSETS_DIR", str(tmp_path / "other"))
    assert import_experiments(tmp_path).imported == ["b"]
