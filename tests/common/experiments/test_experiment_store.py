"""Names, runs and Parquet files, with real processes that race and die."""

from __future__ import annotations

import fcntl
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from apps.experiments.reports import compare_experiments
from common.errors import ExperimentError
from common.experiments import catalogue_entries, store
from common.experiments.catalogue import Catalogue
from common.experiments.catalogue_cache import cache_path
from common.experiments.log import read_log
from common.experiments.names import exists, next_name
from common.experiments.packing import pack_experiments
from common.experiments.recovery import open_catalogue
from common.experiments.sql import query_rows
from common.experiments.store import is_running
from common.utils import (
    query_experiments,
    save_experiment,
    start_experiment,
)
from common.utils.paths import get_experiments_dir, get_runs_dir
from tests.budget import budget
from tests.conftest import SmallDisk


def processes(script: str, count: int, *arguments: str) -> list[subprocess.Popen[str]]:
    command = [sys.executable, "-c", script, *arguments]
    pipe = subprocess.PIPE
    return [subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) for _ in range(count)]


def finish_all(started: list[subprocess.Popen[str]]) -> list[str]:
    results = [process.communicate(timeout=600) for process in started]
    for process, (_, errors) in zip(started, results, strict=True):
        assert process.returncode == 0, errors
    return [output for output, _ in results]


def status_of(name: str) -> str:
    return next(m["status"] for m in Catalogue().manifests if m["name"] == name)


# --- names -----------------------------------------------------------------------------------------


@pytest.mark.attack
@pytest.mark.slow
def test_processes_that_start_at_the_same_moment_never_share_a_name(tmp_path: Path) -> None:
    script = """
import sys, time
from pathlib import Path
from common.experiments.run import start_experiment
while not Path(sys.argv[1]).exists():
    time.sleep(0.001)
for _ in range(int(sys.argv[2])):
    run = start_experiment(prefix="race")
    run.log({"loss": 1.0}, step=1)
    print(run.name)
    run.finish("interrupted")
"""
    count, starts = budget(3, 6), 6
    started = processes(script, count, str(tmp_path / "go"), str(starts))
    (tmp_path / "go").touch()
    names = [name for output in finish_all(started) for name in output.split()]
    assert sorted(names) == sorted(f"race_{i:03d}" for i in range(1, count * starts + 1))
    assert all(len(read_log(store.log_path(name)).rows) == 1 for name in names)


@pytest.mark.attack
@pytest.mark.slow
def test_of_many_processes_that_want_one_name_one_gets_it(tmp_path: Path) -> None:
    script = """
import sys, time
from pathlib import Path
from common.errors import ExperimentError
from common.experiments.names import claim_name
while not Path(sys.argv[1]).exists():
    time.sleep(0.001)
won = 0
for i in range(50):
    try:
        claim_name(f"only_{i}")
        won += 1
    except ExperimentError:
        pass
print(won)
"""
    started = processes(script, budget(3, 4), str(tmp_path / "go"))
    (tmp_path / "go").touch()
    assert sum(int(output) for output in finish_all(started)) == 50


def test_a_taken_name_is_refused_with_the_next_free_one() -> None:
    save_experiment("exp_001", pd.DataFrame({"loss": [1.0]}))
    (get_runs_dir() / "exp_002").mkdir(parents=True)  # somebody's run folder
    with pytest.raises(ExperimentError, match="'exp_001' already exists") as caught:
        save_experiment("exp_001", pd.DataFrame({"loss": [2.0]}))
    assert "'exp_003'" in caught.value.hint
    with pytest.raises(ExperimentError, match="already exists"):
        start_experiment("exp_001")
    assert query_experiments("SELECT loss FROM experiments")["loss"].tolist() == [1.0]
    assert sorted(p.name for p in get_experiments_dir().glob("exp*")) == ["exp_001.parquet"]


@pytest.mark.parametrize("name", ["exp", "exp_009", "v1", "007", "9", "a.b", "x" * 128, "exp_999"])
def test_the_suggested_name_is_one_that_can_be_used(name: str) -> None:
    save_experiment(name, pd.DataFrame({"loss": [1.0]}))
    suggestion = next_name(name)
    assert suggestion != name
    save_experiment(suggestion, pd.DataFrame({"loss": [1.0]}))


@pytest.mark.parametrize(
    "name", [".", "..", ".hidden", "a/b", "../x", "a b", "é", "-x", "x" * 129, "a\n", "a\0", "a'b"]
)
def test_a_name_that_is_no_file_name_is_refused(name: str) -> None:
    with pytest.raises(ExperimentError, match="not a valid experiment name"):
        start_experiment(name)
    with pytest.raises(ExperimentError, match="not a valid experiment name"):
        save_experiment(name, pd.DataFrame({"loss": [1.0]}))
    assert not any(get_experiments_dir().glob("*.jsonl"))


def test_a_run_that_is_alive_can_be_neither_started_again_nor_resumed() -> None:
    run = start_experiment("alive")
    with pytest.raises(ExperimentError, match="already exists"):
        start_experiment("alive")
    with pytest.raises(ExperimentError, match="running in another process"):
        start_experiment("alive", resume=True)
    run.finish()
    with pytest.raises(ExperimentError, match="is finished"):
        start_experiment("alive", resume=True)
    with pytest.raises(ExperimentError, match="no experiment 'nobody'"):
        start_experiment("nobody", resume=True)


# --- the Parquet file ------------------------------------------------------------------------------


def test_the_parquet_file_has_the_promised_columns_and_the_manifest_in_its_footer() -> None:
    with start_experiment("exp", project="p", config={"lr": 0.1}, seed=3, tags=["a"]) as run:
        run.log({"loss": 2.0, "lr": 1}, step=1, epoch=0.5)
        run.log({"loss": 1.5, "accuracy": np.float32(0.5)}, step=np.int64(2), split="val")
    assert not store.log_path("exp").exists()
    table = pq.read_table(store.parquet_path("exp"))
    text, double = pa.string(), pa.float64()
    assert [(field.name, field.type) for field in table.schema] == [
        ("experiment_name", text),
        ("step", pa.int64()),
        ("epoch", double),
        ("split", text),
        ("time", double),
        ("loss", double),
        ("lr", double),
        ("accuracy", double),
    ]
    assert table["step"].to_pylist() == [1, 2]
    assert table["lr"].to_pylist() == [1.0, None]
    assert table["accuracy"].to_pylist() == [None, 0.5]
    manifest = json.loads(table.schema.metadata[b"experiment"])
    assert manifest["name"] == "exp" and manifest["status"] == "finished"
    assert (manifest["project"], manifest["config"], manifest["seed"]) == ("p", {"lr": 0.1}, 3)
    assert manifest["tags"] == ["a"] and manifest["duration"] >= 0
    assert (
        json.loads((get_runs_dir() / "exp" / "manifest.json").read_text())["status"] == "finished"
    )


def test_nan_and_infinities_are_kept_as_they_are() -> None:
    values = [1.0, math.nan, math.inf, -math.inf, -0.0, 5e-324, 1.7976931348623157e308]
    with start_experiment("exp") as run:
        for step, value in enumerate(values):
            run.log({"loss": value}, step=step)
        live = [r[0] for r in query_rows("SELECT loss FROM experiments ORDER BY step")[1]]
    finished = [r[0] for r in query_rows("SELECT loss FROM experiments ORDER BY step")[1]]
    assert list(map(repr, live)) == list(map(repr, values)) == list(map(repr, finished))


@pytest.mark.parametrize(
    "value", ["0.5", None, [1.0], {"a": 1}, np.zeros(2), torch.zeros(2), 1j, b"1", pd.NA]
)
def test_a_metric_that_is_not_one_number_is_refused_and_nothing_is_logged(value: Any) -> None:
    run = start_experiment("exp")
    with pytest.raises(ExperimentError, match="'loss' must be a number"):
        run.log({"loss": value}, step=1)
    run.log({"loss": 1.0}, step=1)
    assert run.rows == 1
    run.finish()
    assert query_rows("SELECT loss FROM experiments")[1] == [[1.0]]


@pytest.mark.parametrize(
    "value", [3, 3.0, True, np.float32(3), np.int64(3), torch.tensor(3.0), np.array(3), Fraction(3)]
)
def test_every_kind_of_single_number_is_taken(value: Any) -> None:
    with start_experiment("exp") as run:
        run.log({"loss": value}, step=1)
    assert query_rows("SELECT loss FROM experiments")[1] == [[float(value)]]


@pytest.mark.parametrize("name", ["step", "Epoch", "SPLIT", "time", "experiment_name", ""])
def test_a_metric_cannot_have_a_reserved_name(name: str) -> None:
    run = start_experiment("exp")
    with pytest.raises(ExperimentError, match="cannot be named"):
        run.log({name: 1.0}, step=1)
    run.finish()


@pytest.mark.parametrize("name", ["\0", "a\0b", "\ud800", "a\udcff"])
def test_a_name_that_is_no_text_is_refused(name: str) -> None:
    run = start_experiment("exp")
    with pytest.raises(ExperimentError, match="cannot be named"):
        run.log({name: 1.0}, step=1)
    with pytest.raises(ExperimentError, match="must be a string"):
        run.log({"loss": 1.0}, step=1, split=name)
    run.log({"loss": 1.0}, step=1)
    assert query_rows("SELECT loss FROM experiments")[1] == [[1.0]]
    run.finish()
    assert query_rows("SELECT loss FROM experiments")[1] == [[1.0]]


def test_metrics_that_differ_only_in_case_are_refused() -> None:
    run = start_experiment("exp")
    run.log({"Loss": 1.0}, step=1)
    with pytest.raises(ExperimentError, match="'Loss' and 'loss' differ only in case"):
        run.log({"loss": 1.0}, step=2)
    run.finish()
    with pytest.raises(ExperimentError, match="differ only in case"):
        save_experiment("other", pd.DataFrame({"a": [1.0], "A": [2.0]}))
    assert not exists("other"), "a refused table takes no name"


@pytest.mark.parametrize(
    "name",
    [
        *("filename", "Filename", "file_row_number", "file_index", "rowid", "manifests", "NULL"),
        *("{0}", "a\nb", "a;--", "%s", "\\", "$1", "?", " ", "1", "🙂", "é", "İ", "ß"),
    ],
)
def test_a_metric_may_have_a_name_that_means_something_elsewhere(name: str) -> None:
    save_experiment("other", pd.DataFrame({"loss": [2.0]}))
    with start_experiment("exp") as run:
        run.log({name: 1.0}, step=1)
        live = query_rows("SELECT * EXCLUDE time FROM experiments ORDER BY 1")
    assert live[0][-2:] == sorted([name, "loss"])
    assert [1.0] in [sorted(filter(None, row[-2:])) for row in live[1]]
    assert query_rows("SELECT * EXCLUDE time FROM experiments ORDER BY 1") == live
    assert pack_experiments() == 2
    assert query_rows("SELECT * EXCLUDE time FROM experiments ORDER BY 1") == live


@pytest.mark.parametrize("name", ['a"b', "a b", "val/loss", "é", "select", "a.b", "a'b", "x" * 300])
def test_a_metric_may_have_any_other_name(name: str) -> None:
    with start_experiment("exp") as run:
        run.log({name: 1.0}, step=1)
        quoted = name.replace('"', '""')
        assert query_rows(f'SELECT "{quoted}" FROM experiments')[1] == [[1.0]]
    assert query_rows(f'SELECT "{quoted}" FROM experiments')[1] == [[1.0]]


@pytest.mark.parametrize(
    "wrong",
    [{"epoch": "first"}, {"split": None}, {"split": 3}, {"step": 1.5}, {"step": 2**63}],
    ids=str,
)
def test_a_row_that_would_not_fit_the_file_is_refused_when_it_is_logged(
    wrong: dict[str, Any],
) -> None:
    # At the end of the run it would be too late: the whole experiment would not be stored.
    run = start_experiment("exp")
    with pytest.raises((ExperimentError, TypeError, ValueError, OverflowError)):
        run.log({"loss": 1.0}, **({"step": 1} | wrong))
    run.log({"loss": 1.0}, step=1, epoch=1)
    run.finish()
    assert query_rows("SELECT step, epoch FROM experiments")[1] == [[1, 1.0]]


@pytest.mark.parametrize(
    "facts",
    [
        {"tokens": 1.5e9},
        {"parameters": 2**70},
        {"tokens": np.float64(5.5)},
        {"tags": None},
        {"name": "other"},
        {"seed": "x"},
        {"x": object()},
    ],
    ids=lambda facts: str([*facts]),
)
def test_a_fact_that_the_store_cannot_show_is_refused_at_once(facts: dict[str, Any]) -> None:
    run = start_experiment("exp")
    run.log({"loss": 1.0}, step=0)
    with pytest.raises(ExperimentError, match=r"cannot (update|change the name or id of) 'exp'"):
        run.update(**facts)
    run.update(tokens=5)
    run.finish()
    assert query_rows("SELECT name, tokens FROM runs")[1] == [["exp", 5]]


def test_logging_after_the_end_writes_to_no_other_file(tmp_path: Path) -> None:
    run = start_experiment("exp")
    run.log({"loss": 1.0}, step=1)
    run.finish()
    with (tmp_path / "other").open("wb+", buffering=0) as other:  # gets the descriptor that is free
        with pytest.raises((ExperimentError, OSError, ValueError)):
            run.log({"loss": 2.0}, step=2)
        assert other.seek(0, os.SEEK_END) == 0


def test_a_run_may_be_finished_by_hand_inside_its_block() -> None:
    with start_experiment("exp") as run:
        run.log({"loss": 1.0}, step=1)
        run.finish()
    assert status_of("exp") == "finished"


# --- save_experiment -------------------------------------------------------------------------------


def test_a_table_is_stored_with_its_columns_and_metadata() -> None:
    frame = pd.DataFrame(
        {
            "step": [10, 20],
            "split": ["val", "val"],
            "epoch": [1, 2],
            "loss": [2, 1.5],
            "extra": [3, 4],
        }
    )
    metadata = {"project": "p", "seed": 5, "tags": ["x"], "tokens": 100, "note": {"any": "json"}}
    path = save_experiment("exp", frame, metadata=metadata)
    assert path == store.parquet_path("exp")
    back = query_experiments("SELECT * FROM experiments ORDER BY step")
    assert back["step"].tolist() == [10, 20] and back["step"].dtype == np.int64
    assert back["loss"].tolist() == [2.0, 1.5] and back["extra"].tolist() == [3.0, 4.0]
    assert back["split"].tolist() == ["val", "val"] and back["time"].isna().all()
    run = query_experiments("SELECT project, seed, tags, tokens, status FROM runs").iloc[0]
    assert (run["project"], run["seed"], list(run["tags"])) == ("p", 5, ["x"])
    assert (run["tokens"], run["status"]) == (100, "finished")


def test_without_a_step_column_the_rows_are_counted() -> None:
    save_experiment("exp", pd.DataFrame({"loss": [3.0, 2.0, 1.0]}, index=[7, 8, 9]))
    assert query_rows("SELECT step, split FROM experiments ORDER BY step")[1] == [
        [0, "train"],
        [1, "train"],
        [2, "train"],
    ]


def test_the_padding_of_pandas_between_splits_is_not_taken_for_nan() -> None:
    frame = pd.DataFrame(
        [
            {"split": "train", "loss": 1.0, "lr": 0.1, "bad": math.nan},
            {"split": "train", "loss": math.nan, "lr": 0.1, "bad": math.nan},
            {"split": "val", "loss": 2.0, "bad": math.nan},
        ]
    )
    save_experiment("a", frame)
    summaries = {(s.split, s.metric): s for s in Catalogue().summaries()}
    assert ("val", "lr") not in summaries, "it was never logged there"
    assert summaries["train", "loss"].diverged and summaries["val", "bad"].diverged


@pytest.mark.parametrize(
    "frame",
    [
        pd.DataFrame({"loss": ["a"]}),
        pd.DataFrame({"loss": [1.0], "note": ["text"]}),
        pd.DataFrame({"loss": [1.0], "when": [pd.Timestamp("2020-01-01")]}),
        pd.DataFrame({"step": [1.5], "loss": [1.0]}),
        pd.DataFrame({"step": ["1"], "loss": [1.0]}),
        pd.DataFrame({"step": [math.nan], "loss": [1.0]}),
        pd.DataFrame({"epoch": ["first"], "loss": [1.0]}),
        pd.DataFrame({"Step": [1], "loss": [1.0]}),
    ],
)
def test_a_table_that_does_not_fit_is_refused_and_takes_no_name(frame: pd.DataFrame) -> None:
    with pytest.raises(ExperimentError):
        save_experiment("exp", frame)
    assert not exists("exp")


def test_metadata_that_is_not_json_is_refused() -> None:
    with pytest.raises(ExperimentError, match="JSON"):
        save_experiment("exp", pd.DataFrame({"loss": [1.0]}), metadata={"x": object()})
    assert not exists("exp")


@pytest.mark.parametrize(
    "metadata",
    [
        {"seed": "abc"},
        {"seed": 2**64},
        {"parameters": "124M"},
        {"parameters": 1.5e6},
        {"tokens": 0.5},
        {"tags": "one"},
        {"tags": [1]},
        {"started": "yesterday"},
        {"started": 5},
        {"duration": "3h"},
        {"status": "running"},
        {"config": {"lr": math.nan}},
        {"config": None},
        {"project": None},
        {"host": 3},
        {"file": "x"},
    ],
    ids=str,
)
def test_no_metadata_of_one_experiment_makes_the_others_unreadable(
    metadata: dict[str, Any],
) -> None:
    save_experiment("good", pd.DataFrame({"loss": [1.0]}))
    try:
        save_experiment("odd", pd.DataFrame({"loss": [2.0]}), metadata=metadata)
    except ExperimentError:
        return  # refused in time, which is as good
    assert "good" in [manifest["name"] for manifest in Catalogue().manifests]
    assert ["good"] in query_rows("SELECT name FROM runs ORDER BY started")[1]
    assert ["good", None] in query_rows("SELECT name, config->>'$.lr' FROM runs")[1]
    assert [1.0] in query_rows("SELECT loss FROM experiments")[1]


# --- stores that cannot be written -----------------------------------------------------------------


@pytest.fixture
def read_only(small_disk: SmallDisk, tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """(a disk, the same disk as one sees it who may only read)"""
    disk, view = small_disk("8m"), tmp_path / "view"
    view.mkdir()
    subprocess.run(["mount", "--bind", str(disk), str(view)], check=True)
    subprocess.run(["mount", "-o", "remount,ro,bind", str(view)], check=True)
    yield disk, view
    subprocess.run(["umount", "--lazy", str(view)], check=True)


def test_a_store_that_may_only_be_read_says_what_it_said(
    read_only: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, view = read_only
    monkeypatch.setenv("RESEARCH_ASSETS_DIR", str(disk))
    save_experiment("done", pd.DataFrame({"loss": [1.0]}))
    start_experiment("left").finish("interrupted")
    _begin_to_finish("half", rows=1)
    going = start_experiment("going")
    going.log({"loss": 2.0}, step=0)
    expected = {"done": "finished", "half": "finished", "left": "interrupted", "going": "running"}
    monkeypatch.setenv("RESEARCH_ASSETS_DIR", str(view))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for _ in range(2):
        assert {run.name: run.status for run in Catalogue().overview()} == expected
        assert query_rows("SELECT count(*) FROM experiments")[1] == [[3]]
    with pytest.raises(OSError, match="Read-only file system"):
        start_experiment("new")


def test_a_store_that_may_only_be_read_is_read_once(
    read_only: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, view = read_only
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def change(name: str) -> None:
        monkeypatch.setenv("RESEARCH_ASSETS_DIR", str(disk))
        save_experiment(name, pd.DataFrame({"loss": [1.0]}))
        monkeypatch.setenv("RESEARCH_ASSETS_DIR", str(view))

    reads: list[str] = []
    read = catalogue_entries._read_file
    monkeypatch.setattr(
        catalogue_entries,
        "_read_file",
        lambda d, file, *rest: reads.append(file) or read(d, file, *rest),
    )
    change("a")
    assert open_catalogue().names() == ["a"]
    change("b")
    for expected in (["b.parquet"], []):
        reads.clear()
        assert open_catalogue().names() == ["a", "b"]
        assert reads == expected
    assert cache_path().is_relative_to(tmp_path / "cache")
    cache_path().write_bytes(b"no database at all" * 1000)
    assert open_catalogue().names() == ["a", "b"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(view / "cache"))  # where nothing can be written either
    assert open_catalogue().names() == ["a", "b"]


def _begin_to_finish(name: str, rows: int) -> None:
    """Leave `name` as a process does that is killed before it has written the Parquet file."""
    run = start_experiment(name)
    for step in range(rows):
        run.log({"loss": 1.0}, step=step)
    run.update(status="finished", finished=run.manifest["started"], duration=1.0)
    run._writer.close()
    run._lock.release()


def test_a_finish_that_finds_the_disk_full_is_made_up_for_later(
    small_disk: SmallDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = small_disk("4m")
    monkeypatch.setenv("RESEARCH_ASSETS_DIR", str(disk))
    save_experiment("done", pd.DataFrame({"loss": [1.0]}))
    _begin_to_finish("half", rows=50)
    with pytest.raises(OSError, match="No space"), (disk / "filler").open("wb", 0) as filler:
        while True:
            filler.write(bytes(4096))
    for _ in range(2):
        assert {r.name: r.status for r in Catalogue().overview()} == dict.fromkeys(
            ("done", "half"), "finished"
        )
        assert query_rows("SELECT count(*) FROM experiments")[1] == [[51]]
    (disk / "filler").unlink()
    assert query_rows("SELECT count(*) FROM experiments")[1] == [[51]]
    assert store.parquet_path("half").exists() and not store.log_path("half").exists()


def test_the_lock_file_is_gone_before_another_process_can_lock_it() -> None:
    run = start_experiment("exp")
    lock, release = Path(run._lock.lock_file), run._lock.release
    seen = []
    run._lock.release = lambda: seen.append(lock.exists()) or release()  # type: ignore[method-assign]
    run.finish("interrupted")
    assert seen == [False]


def test_those_who_ask_whether_a_run_is_alive_do_not_take_one_another_for_it() -> None:
    run = start_experiment("exp")
    lock = Path(run._lock.lock_file)
    assert is_running("exp")
    run._lock.release()
    with lock.open("rb") as another_reader:
        fcntl.flock(another_reader, fcntl.LOCK_SH)
        assert not is_running("exp")
    lock.unlink()
    assert not is_running("exp") and not lock.exists()


# --- death and resurrection ------------------------------------------------------------------------

_WRITER = """
import sys
from common.experiments.run import start_experiment
run = start_experiment(sys.argv[1])
step = 0
while True:
    step += 1
    run.log({"loss": 1.0 / step, "text length " + "x" * (step % 50): step}, step=step)
    print(step, flush=True)
"""


@pytest.mark.attack
@pytest.mark.slow
def test_a_killed_run_keeps_every_row_that_log_returned_for_and_is_called_died() -> None:
    rng = random.Random(0)
    names = [f"victim_{i}" for i in range(budget(2, 5))]
    for name in names:
        process = processes(_WRITER, 1, name)[0]
        assert process.stdout is not None and process.stderr is not None
        lines = [process.stdout.readline()]  # it is logging now
        assert status_of(name) == "running"
        time.sleep(rng.uniform(0.0, 0.1))
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.read().splitlines()
        process.wait()
        process.stdout.close()
        process.stderr.close()
        reported = [int(line) for line in lines if line.strip()]
        steps = [record["step"] for record in read_log(store.log_path(name)).rows]
        assert steps == list(range(1, len(steps) + 1)), "in order, none twice, none missing"
        # The last number may be cut off in the pipe, so at most it is missing from the report.
        assert len(steps) >= len(reported) > 0
        assert status_of(name) == "died"
    counted = dict(query_rows("SELECT experiment_name, count(*) FROM experiments GROUP BY ALL")[1])
    assert counted == {name: len(read_log(store.log_path(name)).rows) for name in names}
    statuses = query_rows("SELECT DISTINCT status FROM runs")[1]
    assert statuses == [["died"]]


def test_a_resumed_run_supersedes_the_rows_after_the_checkpoint() -> None:
    run = start_experiment("exp", seed=1)
    for step in range(5):
        run.log({"loss": float(step)}, step=step)
    run.finish("interrupted")
    assert status_of("exp") == "interrupted"
    resumed = start_experiment("exp", resume=True)
    assert resumed.rows == 5
    resumed.resume_from(3)
    assert status_of("exp") == "running"
    resumed.log({"loss": 30.0}, step=3)
    assert resumed.rows == 4
    resumed.finish()
    _, rows = query_rows("SELECT step, loss, time FROM experiments ORDER BY step")
    assert [row[:2] for row in rows] == [[0, 0.0], [1, 1.0], [2, 2.0], [3, 30.0]]
    times = [row[2] for row in rows]
    assert times == sorted(times), "the clock of a resumed run goes on"
    assert query_rows("SELECT status, seed FROM runs")[1] == [["finished", 1]]


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt, "interrupted"), (RuntimeError, "failed")]
)
def test_a_run_left_by_an_exception_keeps_its_log(error: type[BaseException], status: str) -> None:
    with pytest.raises(error), start_experiment("exp") as run:
        run.log({"loss": 1.0}, step=1)
        raise error
    assert status_of("exp") == status
    assert query_rows("SELECT loss FROM experiments")[1] == [[1.0]]


@pytest.mark.attack
@pytest.mark.slow
def test_a_run_killed_anywhere_in_its_finish_is_finished_by_the_next_reader() -> None:
    script = """
import os, signal, sys
import pyarrow.parquet
from common.experiments.run import start_experiment

def die_at(moment):
    seen = 0
    def hook(event, arguments):
        nonlocal seen
        if event in ("open", "os.rename", "os.remove") and "outputs/experiments/" in str(arguments[0]):
            seen += 1
            if seen == moment:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)

moment, stride = 0, int(sys.argv[1])
while True:
    moment += 1
    child = os.fork()
    if child == 0:
        run = start_experiment(f"m_{moment}", config={"moment": moment})
        for step in range(5):
            run.log({"loss": 0.5**step}, step=step)
        run.update(done=True)
        die_at(moment * stride)
        run.finish()
        os._exit(0)
    ended = os.waitpid(child, 0)[1]
    assert ended in (0, signal.SIGKILL)
    if ended == 0:
        break
print(moment)
"""
    stride = budget(4, 1)
    (output,) = finish_all(processes(script, 1, str(stride)))
    moments = int(output)
    assert moments * stride > 5
    catalogue = Catalogue()
    assert catalogue.broken == []
    found = {m["file"]: m["status"] for m in catalogue.manifests}
    assert found == {f"m_{moment}.parquet": "finished" for moment in range(1, moments + 1)}
    counts = "SELECT count(*), count(DISTINCT step) FROM experiments GROUP BY experiment_name"
    assert query_rows(counts)[1] == [[5, 5]] * moments


@pytest.mark.attack
@pytest.mark.slow
def test_a_process_killed_while_it_stores_leaves_the_log_or_the_file_never_half_of_one() -> None:
    script = """
import sys
from common.experiments.run import start_experiment
import pyarrow.parquet
print("ready", flush=True)
for i in range(1000):
    run = start_experiment(f"{sys.argv[1]}_{i}")
    for step in range(20):
        run.log({"loss": float(step)}, step=step)
    print(i, flush=True)
    run.finish()
"""
    rng = random.Random(1)
    for attempt in range(budget(1, 3)):
        process = processes(script, 1, f"k{attempt}")[0]
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline(), process.stdout.readline()
        time.sleep(rng.uniform(0.0, 0.4))
        process.kill()
        logged = len(process.stdout.read().splitlines())
        process.wait()
        process.stdout.close()
        process.stderr.close()
        catalogue = Catalogue()
        assert catalogue.broken == []
        whole = query_rows(
            "SELECT experiment_name FROM experiments GROUP BY 1 HAVING count(*) = 20 "
            f"AND experiment_name LIKE 'k{attempt}%'"
        )[1]
        assert len(whole) >= logged, "each of them had all its rows logged"


@pytest.mark.attack
@pytest.mark.slow
def test_readers_see_every_row_while_runs_are_being_finished() -> None:
    runs = budget(15, 40)
    script = f"""
from common.experiments.run import start_experiment
for i in range({runs}):
    run = start_experiment(f"r_{{i:03d}}")
    run.log({{"loss": 1.0}}, step=1)
    print(i, flush=True)
    run.finish()
"""
    process = processes(script, 1)[0]
    assert process.stdout is not None
    process.stdout.readline()
    seen = 0
    while process.poll() is None:
        count = query_rows("SELECT count(*) FROM experiments")[1][0][0]
        assert count >= seen, "a row that was there is gone"
        seen = count
    process.communicate()
    assert process.returncode == 0
    assert query_rows("SELECT count(*) FROM experiments")[1] == [[runs]]


def test_what_fails_after_an_experiment_is_stored_ends_no_training(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with start_experiment("a") as run:
        run.log({"loss": 1.0}, step=0)
        store.packs_dir().write_text("in the way")
    assert store.parquet_path("a").exists() and not store.log_path("a").exists()
    assert "a is stored, but" in capfd.readouterr().err
    store.packs_dir().unlink()
    assert status_of("a") == "finished"


def test_the_duration_is_the_time_of_work_whatever_the_clock_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Started three days ago for a moment, resumed now; then the clock is set back by an hour."""
    from common.experiments import run as run_module

    def at(days: float) -> None:
        moment = datetime.now().astimezone() + timedelta(days=days)
        monkeypatch.setattr(run_module, "now", lambda: moment.isoformat())
        monkeypatch.setattr("common.utils.manifest.now", lambda: moment.isoformat())

    at(-3)
    run = start_experiment("exp")
    run.log({"loss": 1.0}, step=0)
    time.sleep(0.05)
    run.finish("interrupted")
    (first,) = [facts.duration for facts in Catalogue().overview()]
    at(0)
    run = start_experiment("exp", resume=True)
    run.resume_from(1)
    (running,) = Catalogue().overview()
    assert running.status == "running" and running.duration is not None
    run.log({"loss": 1.0}, step=1)
    at(-1 / 24)
    run.finish()
    (finished,) = Catalogue().overview()
    assert first is not None and finished.duration is not None
    assert 0.05 <= first <= running.duration < 3600 and first <= finished.duration < 3600
    times = [time for (time,) in query_rows("SELECT time FROM experiments ORDER BY step")[1]]
    assert times[0] < 0.05 <= first <= times[1] <= finished.duration


@pytest.mark.parametrize("last", [2.0, math.nan])
def test_the_last_value_is_that_of_the_highest_step(last: float) -> None:
    """In whatever order the rows came; NaN elsewhere is no divergence, there it is one."""
    other = 1.0 if math.isnan(last) else math.nan
    with start_experiment("exp") as run:
        for step, value in ((10, 3.0), (30, 5.0), (30, last), (20, other)):
            run.log({"loss": value}, step=step)
        (live,) = Catalogue().summaries(name="exp")
    (stored,) = Catalogue().summaries(name="exp")
    assert live == stored and stored.last_step == 30
    assert stored.diverged == math.isnan(last) and (stored.diverged or stored.last == 2.0)
    assert Catalogue().overview()[0].step == 30
    report = compare_experiments(["exp"])
    shown = report.rows[0][report.columns.index("last")]
    assert shown is None if math.isnan(last) else shown == 2.0
