"""MLflow's stores, written here in its layout: the package itself is too heavy for a test."""

from __future__ import annotations

import math
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest

from apps.importing import import_experiments
from common.errors import ExperimentError
from tests.imported_runs import (
    check_cuts,
    column,
    import_one,
    stored_manifest,
    stored_rows,
    stored_values,
    try_import,
)

START = 1_700_000_000_000  # milliseconds
RUN = "0123456789abcdef0123456789abcdef"
TABLES = """
CREATE TABLE experiments (experiment_id INTEGER PRIMARY KEY, name TEXT, lifecycle_stage TEXT);
CREATE TABLE runs (run_uuid TEXT PRIMARY KEY, name TEXT, user_id TEXT, status TEXT,
    start_time BIGINT, end_time BIGINT, lifecycle_stage TEXT, experiment_id INTEGER);
CREATE TABLE metrics ("key" TEXT, value FLOAT, timestamp BIGINT, run_uuid TEXT, step BIGINT,
    is_nan BOOLEAN);
CREATE TABLE params ("key" TEXT, value TEXT, run_uuid TEXT);
CREATE TABLE tags ("key" TEXT, value TEXT, run_uuid TEXT);
"""


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())


def write_experiment(folder: Path, name: str, stage: str = "active") -> None:
    write_text(
        folder / "meta.yaml", f"experiment_id: '1'\nlifecycle_stage: {stage}\nname: {name}\n"
    )


def write_run(
    folder: Path, *, name: str = "first run", status: int = 3, stage: str = "active"
) -> None:
    write_text(
        folder / "meta.yaml",
        f"artifact_uri: file:///nowhere\nend_time: {START + 9000}\nexperiment_id: '1'\n"
        f"lifecycle_stage: {stage}\nrun_id: {folder.name}\nrun_name: {name}\n"
        f"start_time: {START}\nstatus: {status}\ntags: []\nuser_id: ada\n",
    )
    lines = [f"{START + 1000 * step} {1 / (step + 1)} {step}\n" for step in range(6)]
    write_text(folder / "metrics" / "train" / "loss", "".join(lines))
    write_text(folder / "metrics" / "val" / "acc" / "top1", f"{START} 0.5 2 data digest\n")
    values = "".join(f"{START + 1000 * s} {v} {s}\n" for s, v in enumerate(("nan", "inf", "-inf")))
    write_text(folder / "metrics" / "odd", values)
    write_text(folder / "metrics" / "stepless", f"{START} 1.0 0\n{START + 1} 2.0 0\n")
    write_text(folder / "params" / "lr", "1e-05")
    write_text(folder / "params" / "seed", "3")
    write_text(folder / "params" / "version", "1.10")
    write_text(folder / "params" / "model" / "note", "two\nlines")
    write_text(folder / "tags" / "team" / "x", "blue")
    write_text(folder / "tags" / "mlflow.note.content", "a note")
    write_text(folder / "tags" / "mlflow.source.git.commit", "abc123")
    write_text(folder / "artifacts" / "events.out.tfevents.1", "not a run of its own")


@pytest.fixture
def file_store(tmp_path: Path) -> Path:
    root = tmp_path / "mlruns"
    write_experiment(root / "1", "'my study: 1'")
    write_run(root / "1" / RUN)
    return root


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "mlflow.db"
    with closing(sqlite3.connect(path)) as store, store:
        store.executescript(TABLES)
        store.executemany(
            "INSERT INTO experiments VALUES (?, ?, ?)",
            [(1, "study", "active"), (2, "old", "deleted")],
        )
        runs = [
            (RUN, "first run", "ada", "FINISHED", START, START + 9000, "active", 1),
            ("b" * 32, "second", "ada", "KILLED", START + 1, START + 2, "active", 1),
            ("c" * 32, "gone", "ada", "FINISHED", START, START, "deleted", 1),
            ("d" * 32, "in the bin", "ada", "FINISHED", START, START, "active", 2),
            ("e" * 32, "alive", "ada", "RUNNING", START + 2, None, "active", 1),
        ]
        store.executemany("INSERT INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?)", runs)
        largest = sys.float_info.max  # what MLflow writes for an infinity
        metrics = [("train/loss", 1 / (s + 1), START + 1000 * s, RUN, s, 0) for s in range(6)]
        metrics += [("val/acc/top1", 0.5, START, RUN, 2, 0), ("odd", 0.0, START, RUN, 0, 1)]
        metrics += [("odd", largest, START, RUN, 1, 0), ("odd", -largest, START, RUN, 2, 0)]
        metrics += [("x", 1.0, START, run * 32, 0, 0) for run in "bcde"]
        store.executemany("INSERT INTO metrics VALUES (?, ?, ?, ?, ?, ?)", metrics)
        store.executemany(
            "INSERT INTO params VALUES (?, ?, ?)",
            [("lr", "1e-05", RUN), ("flag", "True", RUN), ("name", "01", RUN)],
        )
        store.execute("INSERT INTO tags VALUES ('team', 'blue', ?)", (RUN,))
    return path


def test_a_run_of_a_file_store(file_store: Path) -> None:
    name = import_one(file_store)
    assert name == "first-run"
    assert column(name, "loss") == [(s, 1 / (s + 1)) for s in range(6)]
    assert column(name, "acc/top1", "val") == [(2, 0.5)]
    (_, nan), *infinities = column(name, "odd")
    assert math.isnan(nan)
    assert infinities == [(1, math.inf), (2, -math.inf)]
    assert column(name, "stepless") == [(0, 1.0), (0, 2.0)]
    assert [row["time"] for row in stored_rows(name) if "loss" in row] == [0, 1, 2, 3, 4, 5]

    manifest = stored_manifest(name)
    assert manifest["config"] == {
        **{"lr": 1e-05, "seed": 3, "version": "1.10"},
        "model/note": "two\nlines",
    }
    assert manifest["tags"] == ["team/x=blue", "imported"]
    facts = {"project": "my study: 1", "status": "finished", "duration": 9.0, "seed": 3}
    facts |= {"git_commit": "abc123", "user": "ada", "note": "a note", "host": None}
    assert {key: manifest[key] for key in facts} == facts
    assert manifest["source"]["id"] == RUN


def test_status_deleted_runs_and_deleted_experiments(file_store: Path) -> None:
    write_run(file_store / "1" / ("b" * 32), name="broken", status=4)
    write_run(file_store / "1" / ("c" * 32), name="gone", stage="deleted")
    write_experiment(file_store / "2", "old", stage="deleted")
    write_run(file_store / "2" / ("d" * 32), name="in the bin")
    write_run(file_store / ".trash" / "3" / ("e" * 32), name="thrown away")
    write_run(file_store / "1" / "models" / "m-1", name="a logged model")
    report = import_experiments(file_store)
    assert sorted(report.imported) == ["broken", "first-run"]
    assert not report.refused
    assert stored_manifest("broken")["status"] == "failed"


def test_one_experiment_or_one_run_of_a_file_store(file_store: Path) -> None:
    assert import_experiments(file_store / "1" / RUN).imported == ["first-run"]
    assert import_experiments(file_store / "1").skipped[0][1] == "already imported as 'first-run'"


def test_a_run_that_went_on_is_stored_again(
    file_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import_one(file_store)
    with (file_store / "1" / RUN / "metrics" / "train" / "loss").open("a") as file:
        file.write(f"{START + 7000} 0.125 7\n")
    assert import_one(file_store) == "first-run-2"
    assert "has changed since it was imported as first-run" in capsys.readouterr().err
    assert import_experiments(file_store, on_conflict="skip").skipped


def test_runs_of_a_database(database: Path) -> None:
    before = database.read_bytes()
    report = import_experiments(database)
    assert report.imported == ["first-run", "second", "alive"]
    name = "first-run"
    assert column(name, "loss") == [(s, 1 / (s + 1)) for s in range(6)]
    assert column(name, "acc/top1", "val") == [(2, 0.5)]
    (_, nan), *infinities = column(name, "odd")
    assert math.isnan(nan)
    assert infinities == [(1, math.inf), (2, -math.inf)]
    manifest = stored_manifest(name)
    assert manifest["config"] == {"lr": 1e-05, "flag": True, "name": "01"}
    assert (manifest["project"], manifest["user"], manifest["duration"]) == ("study", "ada", 9.0)
    assert [stored_manifest(n)["status"] for n in report.imported[1:]] == ["interrupted"] * 2
    assert database.read_bytes() == before
    assert list(database.parent.glob("mlflow.db-*")) == []
    assert len(import_experiments(database.parent).skipped) == 3


def test_another_database_is_one_clear_error(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "other.db")) as store, store:
        store.execute("CREATE TABLE t (x)")
    with pytest.raises(ExperimentError, match=r"as an MLflow store: no such table: runs"):
        import_experiments(tmp_path / "other.db")


@pytest.mark.slow
@pytest.mark.parametrize("damaged", ["meta.yaml", "metrics/train/loss", "params/lr"])
def test_a_cut_file_store_gives_what_is_whole(
    file_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: str
) -> None:
    whole = stored_values(import_one(file_store))
    stores = iter(range(1000))

    def fresh_store() -> None:
        monkeypatch.setenv("RESEARCH_ASSETS_DIR", str(tmp_path / f"assets{next(stores)}"))

    path = file_store / "1" / RUN / damaged
    check_cuts(file_store, path, whole, fresh_store)


def test_a_cut_line_of_a_metric_is_left_out(
    file_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = file_store / "1" / RUN / "metrics" / "train" / "loss"
    path.write_bytes(path.read_bytes().removesuffix(b" 5\n"))  # would be read as step 0
    assert column(import_one(file_store), "loss") == [(s, 1 / (s + 1)) for s in range(5)]
    assert "skipped 1 damaged lines of the metric 'train/loss'" in capsys.readouterr().err


def test_a_cut_or_damaged_database_never_shows_a_traceback(
    database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = database.read_bytes()
    for number, position in enumerate(range(0, len(content), len(content) // 20)):
        monkeypatch.setenv("RESEARCH_ASSETS_DIR", str(tmp_path / f"assets{number}"))
        for damaged in (content[:position], content[:position] + b"\xf3" + content[position + 1 :]):
            database.write_bytes(damaged)
            try_import(database)
