"""Runs that the real wandb wrote offline come back number for number."""

from __future__ import annotations

import importlib.util
import math
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from apps.importing import import_experiments
from common.errors import MissingPackageError
from tests.imported_runs import (
    check_cuts,
    column,
    import_one,
    stored_manifest,
    stored_rows,
    stored_values,
    try_import,
)

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("wandb") is None, reason="wandb is not installed"
)

SCRIPT = """
import math, sys
import wandb

config = {"lr": 1e-3, "seed": 3, "model": {"width": 8}}
run = wandb.init(project="lm", name="first run/1", tags=["a", "b"], notes="a note", config=config)
for step in range(200):
    run.log({
        "train/loss": 1 / (step + 1), "val": {"loss": 2 / (step + 1), "acc": {"top1": 0.5}},
        "epoch": step / 10, "nan": math.nan, "inf": -math.inf, "flag": True, "text": "hello",
        "weights": wandb.Histogram([1, 2, 3]), "time": 7,
    })
run.log({"late": 1}, step=500)
run.config.update({"extra": [1, 2]})
run.summary["best"] = 0.25
run.finish()
with wandb.init(project="lm", id="crashed1", config={"lr": 1}) as run:
    run.log({"loss": 1.0})
    run.finish(exit_code=3)
"""


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `wandb/` with a run that finished and one that failed."""
    directory = tmp_path_factory.mktemp("offline")
    settings = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}
    subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=directory, env=os.environ | settings, check=True
    )
    return directory / "wandb"


@pytest.mark.slow
def test_history_config_and_facts_of_an_offline_run(offline: Path) -> None:
    report = import_experiments(offline)
    assert sorted(report.imported) == ["crashed1", "first-run-1"]
    name = "first-run-1"
    assert column(name, "loss") == [(s, 1 / (s + 1)) for s in range(200)]
    assert column(name, "loss", "val") == [(s, 2 / (s + 1)) for s in range(200)]
    assert column(name, "acc/top1", "val") == [(s, 0.5) for s in range(200)]
    assert column(name, "late") == [(500, 1.0)]
    assert column(name, "flag")[0] == (0, 1.0)
    assert column(name, "logged_time")[0] == (0, 7.0)
    assert all(math.isnan(value) for _, value in column(name, "nan"))
    assert {value for _, value in column(name, "inf")} == {-math.inf}
    rows = stored_rows(name)
    assert [row["epoch"] for row in rows if row["split"] == "val"] == [s / 10 for s in range(200)]
    assert all(0 <= row["time"] < 600 for row in rows)
    assert not {"text", "weights", "step_2", "_step"} & {key for row in rows for key in row}

    manifest = stored_manifest(name)
    assert manifest["config"] == {
        **{"lr": 1e-3, "seed": 3, "model": {"width": 8}},
        "extra": [1, 2],
    }
    assert (manifest["project"], manifest["status"], manifest["seed"]) == ("lm", "finished", 3)
    assert manifest["tags"] == ["a", "b", "imported"]
    assert manifest["note"] == "a note"
    assert manifest["summary"]["best"] == 0.25
    assert manifest["summary"]["weights"] == "(histogram)"
    assert manifest["started"] <= manifest["finished"]
    assert manifest["source"]["kind"] == "wandb"
    assert stored_manifest("crashed1")["status"] == "failed"


def test_one_run_by_its_folder_its_file_or_the_link_to_the_latest(offline: Path) -> None:
    (file,) = offline.glob("offline-run-*-crashed1/run-crashed1.wandb")
    assert import_experiments(file.parent).imported == ["crashed1"]
    for source in (file, offline / "latest-run", shutil.copy(file, offline.parent / file.name)):
        assert import_experiments(Path(source)).skipped[0][1] == "already imported as 'crashed1'"


@pytest.mark.slow
def test_a_cut_file_gives_what_is_whole(
    offline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source,) = (p for p in offline.glob("*/*.wandb") if p.stem != "run-crashed1")
    whole = stored_values(import_one(source))
    copy = tmp_path / source.name
    shutil.copy(source, copy)
    stores = iter(range(1000))

    def fresh_store() -> None:
        monkeypatch.setenv("RESEARCH_ASSETS_DIR", str(tmp_path / f"assets{next(stores)}"))

    counts = check_cuts(copy, copy, whole, fresh_store)
    assert counts == sorted(counts)
    assert len(whole) / 4 < counts[len(counts) // 2] < len(whole)
    assert stored_manifest("first-run-1")["status"] == "interrupted"


def test_damaged_bytes_end_the_reading(
    offline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source,) = (p for p in offline.glob("*/*.wandb") if p.stem != "run-crashed1")
    content = source.read_bytes()
    for number, position in enumerate((3, 7, 11, 13, 40, len(content) // 2, len(content) - 2)):
        monkeypatch.setenv("RESEARCH_ASSETS_DIR", str(tmp_path / f"assets{number}"))
        copy = tmp_path / source.name
        copy.write_bytes(content[:position] + b"\xff\x00" + content[position + 2 :])
        report = try_import(copy)
        assert report.imported or report.refused


def test_what_is_no_log_of_wandb_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run-x.wandb"
    path.write_bytes(struct.pack("<IHB", 0, 0, 0) * 100)
    assert "is not a W&B log" in import_experiments(path).refused[0][1]


def test_without_the_package_the_fix_is_named(
    offline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb.proto.wandb_internal_pb2", None)
    with pytest.raises(MissingPackageError) as caught:
        import_experiments(offline)
    assert ".[wandb]" in caught.value.hint
