"""The catalogue is a cache: whatever happens to it or to one file, the others are found."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from apps.experiments.deleting import delete_experiments
from common.errors import ExperimentError
from common.experiments import catalogue_cache, log, store
from common.experiments.catalogue import Catalogue
from common.experiments.log import append_records
from common.experiments.metrics import metric_direction, preferred_split
from common.experiments.names import claim_name
from common.experiments.parquet import write_parquet
from common.experiments.recovery import open_catalogue
from common.experiments.sql import query_rows
from common.utils import save_experiment, start_experiment
from common.utils.paths import get_experiments_dir
from tests.budget import budget, examples


def save(name: str, split: str = "val", **metrics: list[float]) -> Path:
    length = len(next(iter(metrics.values())))
    frame = pd.DataFrame({"step": range(length), "split": [split] * length, **metrics})
    return save_experiment(name, frame)


def names(catalogue: Catalogue) -> list[str]:
    return sorted(manifest["name"] for manifest in catalogue.manifests)


def ranked(metric: str, **options: Any) -> list[str]:
    return [manifest["name"] for manifest, _ in Catalogue().best(metric, **options)]


def cache() -> Path:
    return get_experiments_dir() / ".catalogue.sqlite"


def test_a_deleted_cache_is_made_again() -> None:
    save("a", loss=[2.0, 1.0])
    before = open_catalogue().summaries()
    cache().unlink()
    assert open_catalogue().summaries() == before and cache().exists()


@pytest.mark.parametrize("opened", [Catalogue, open_catalogue])
@pytest.mark.parametrize(
    "content", [b"", b"garbage", bytes(5000), b"SQLite format 3\0" + bytes(200)]
)
def test_a_cache_that_is_no_database_is_made_again(
    content: bytes, opened: Callable[[], Catalogue]
) -> None:
    save("a", loss=[2.0, 1.0])
    before = Catalogue().summaries()
    cache().write_bytes(content)
    for _ in range(2):
        catalogue = opened()
        assert names(catalogue) == ["a"] and catalogue.summaries() == before


@pytest.mark.parametrize("opened", [Catalogue, open_catalogue])
@pytest.mark.parametrize("seed", range(6))
def test_a_cache_with_a_damaged_page_or_a_cut_end_is_made_again(
    seed: int, opened: Callable[[], Catalogue]
) -> None:
    for i in range(3):
        save(f"run_{i}", loss=[2.0, 1.0], **{f"metric_{j}": [1.0, 1.0] for j in range(80)})
    before = sorted(Catalogue().summaries(), key=str)
    rng = random.Random(seed)
    content = bytearray(cache().read_bytes())
    if seed % 2:
        content = content[: rng.randrange(100, len(content))]
    else:  # a whole page of noise, as a disk leaves it; the first holds the header and the schema
        page = 4096 * rng.randrange(1, len(content) // 4096)
        content[page : page + 4096] = rng.randbytes(4096)
    cache().write_bytes(content)
    for _ in range(2):
        catalogue = opened()
        assert len(catalogue.manifests) == 3
        assert sorted(catalogue.summaries(), key=str) == before


def test_a_cache_of_another_version_is_made_again() -> None:
    import sqlite3

    save("a", loss=[1.0])
    database = sqlite3.connect(cache())
    database.executescript("DROP TABLE metrics; PRAGMA user_version = 999")
    database.close()
    for opened in (Catalogue, open_catalogue):
        assert len(opened().best("loss")) == 1


@pytest.mark.attack
@pytest.mark.slow
def test_processes_that_open_an_empty_store_at_the_same_moment_all_succeed(tmp_path: Path) -> None:
    rounds = budget(5, 15)
    script = """
import os, sys, time
from pathlib import Path
from common.experiments.recovery import open_catalogue
for round in range(int(sys.argv[2])):
    os.environ["RESEARCH_ASSETS_DIR"] = f"{sys.argv[1]}/store_{round}"
    while not Path(f"{sys.argv[1]}/go_{round}").exists():
        time.sleep(0.0005)
    open_catalogue()
    Path(f"{sys.argv[1]}/done_{round}_{os.getpid()}").touch()
"""
    command = [sys.executable, "-c", script, str(tmp_path), str(rounds)]
    started = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    for i in range(rounds):
        (tmp_path / f"go_{i}").touch()
        while len(list(tmp_path.glob(f"done_{i}_*"))) < sum(p.poll() is None for p in started):
            time.sleep(0.001)
    errors = [process.communicate(timeout=60)[1] for process in started]
    assert errors == [""] * 4


@pytest.mark.parametrize("opened", [Catalogue, open_catalogue])
@pytest.mark.parametrize("mode", ["IMMEDIATE", "EXCLUSIVE"])
def test_a_cache_that_another_process_holds_is_done_without_and_left_alone(
    mode: str, opened: Callable[[], Catalogue], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sqlite3

    monkeypatch.setattr(catalogue_cache, "_LONGEST_WAIT_SECONDS", 0.3)

    save("a", loss=[2.0])
    other = sqlite3.connect(cache(), isolation_level=None)
    other.execute(f"BEGIN {mode}")
    inode = cache().stat().st_ino
    write_parquet(Catalogue().manifest("a") | {"name": "b"}, [])
    assert names(opened()) == ["a", "b"] and ranked("loss") == ["a"]
    other.execute("COMMIT")
    other.close()
    assert names(opened()) == ["a", "b"] and cache().stat().st_ino == inode


def test_a_reader_writes_nothing_and_recovery_is_called_by_name() -> None:
    """Of a store without a cache, with a run that was killed while it finished and one that died."""
    save("done", loss=[2.0])
    for name, status in (("half", "finished"), ("left", None)):
        run = start_experiment(name)
        run.log({"loss": 1.0}, step=0)
        if status:
            run.update(status=status, finished=run.manifest["started"], duration=1.0)
        run._writer.close()
        run._lock.release()
    cache().unlink()

    def files() -> dict[Path, tuple[int, bytes]]:
        found = [path for path in get_experiments_dir().rglob("*") if path.is_file()]
        return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in found}

    before, expected = files(), {"done": "finished", "half": "finished", "left": "died"}
    assert {run.name: run.status for run in Catalogue().overview()} == expected
    assert files() == before
    assert {run.name: run.status for run in open_catalogue().overview()} == expected
    assert cache().exists() and store.parquet_path("half").exists()
    assert not store.log_path("half").exists() and store.log_path("left").exists()


def test_changed_added_and_deleted_files_are_noticed() -> None:
    path = save("a", loss=[2.0])
    assert names(Catalogue()) == ["a"]
    save("b", loss=[1.0])
    assert names(Catalogue()) == ["a", "b"] and ranked("loss") == ["b", "a"]
    path.unlink()
    assert names(Catalogue()) == ["b"] and ranked("loss") == ["b"]


@pytest.mark.parametrize("cut", [0, 1, 4, 8, 100, -1, -8, -200])
def test_a_cut_parquet_file_is_named_and_the_others_stay_readable(cut: int) -> None:
    save("good", loss=[1.0])
    path = save("cut", loss=[2.0, 3.0])
    path.write_bytes(path.read_bytes()[:cut])
    catalogue = Catalogue()
    assert names(catalogue) == ["good"]
    assert [broken.file for broken in catalogue.broken] == ["cut.parquet"]
    assert catalogue.broken[0].error
    assert query_rows("SELECT experiment_name, loss FROM experiments")[1] == [["good", 1.0]]
    path.unlink()
    assert Catalogue().broken == []


def test_flipped_bytes_in_a_parquet_file_never_hide_the_other_files() -> None:
    save("good", loss=[1.0])
    path = save("hit", loss=[float(i) for i in range(50)])
    whole = path.read_bytes()
    rng = random.Random(0)
    for _ in range(40):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        assert "good" in names(Catalogue())
    path.write_bytes(whole)
    assert names(Catalogue()) == ["good", "hit"]


def _foreign(table: pa.Table, manifest: object = None) -> None:
    if manifest is not None:
        table = table.replace_schema_metadata({b"experiment": json.dumps(manifest).encode()})
    pq.write_table(table, get_experiments_dir() / "foreign.parquet")


ROW = {"experiment_name": ["x"], "step": [1], "epoch": [1.0], "split": ["val"], "time": [1.0]}
MANIFEST = {"name": "foreign", "status": "finished", "started": "2020-01-01T00:00:00+00:00"}


@pytest.mark.parametrize(
    ("columns", "manifest"),
    [
        ({"a": [1]}, None),
        (ROW, None),
        (ROW, []),
        (ROW, 5),
        (ROW, {}),
        (ROW, {"name": "foreign"}),
        ({"a": [1]}, MANIFEST),
        (ROW | {"step": ["1"]}, MANIFEST),
        (ROW | {"step": [None]}, MANIFEST),
        (ROW | {"loss": ["text"]}, MANIFEST),
        (ROW | {"loss": [[1.0]]}, MANIFEST),
        (ROW | {"split": [3]}, MANIFEST),
        (ROW | {"epoch": ["first"]}, MANIFEST),
    ],
)
def test_a_foreign_parquet_file_is_named_and_changes_nothing(
    columns: dict[str, list[Any]], manifest: object
) -> None:
    save("good", loss=[1.0])
    _foreign(pa.table(columns), manifest)
    catalogue = Catalogue()
    assert names(catalogue) == ["good"]
    assert [broken.file for broken in catalogue.broken] == ["foreign.parquet"]
    header, rows = query_rows("SELECT * FROM experiments")
    assert header == ["experiment_name", "step", "epoch", "split", "time", "loss"]
    assert rows == [["good", 0, None, "val", None, 1.0]]


def test_a_copied_file_does_not_count_an_experiment_twice() -> None:
    path = save("a", loss=[1.0, 2.0])
    shutil.copy(path, path.with_name("backup.parquet"))
    assert query_rows("SELECT count(*) FROM experiments")[1] == [[2]]


def test_other_files_in_the_folder_are_left_alone() -> None:
    save("a", loss=[1.0])
    (get_experiments_dir() / "notes.txt").write_text("mine")
    (get_experiments_dir() / ".hidden.parquet").write_bytes(b"x")
    catalogue = Catalogue()
    assert names(catalogue) == ["a"] and catalogue.broken == []
    (get_experiments_dir() / "folder.parquet").mkdir()
    assert names(Catalogue()) == ["a"]


@pytest.mark.parametrize("file", ["gone.parquet", "gone.jsonl", "packs/gone.parquet"])
@pytest.mark.parametrize("target", ["/nowhere/x.parquet", "{itself}"])
def test_a_link_that_leads_nowhere_is_named_and_hides_nothing(file: str, target: str) -> None:
    save("a", loss=[1.0])
    link = get_experiments_dir() / file
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(target.format(itself=link))
    script = "from common.experiments.catalogue import Catalogue; print(Catalogue().broken)"
    process = subprocess.run(
        [sys.executable, "-c", script], timeout=30, capture_output=True, text=True
    )
    assert file in process.stdout, process.stderr
    assert names(Catalogue()) == ["a"]
    assert query_rows("SELECT loss FROM experiments")[1] == [[1.0]]
    link.unlink()
    assert Catalogue().broken == []


def test_a_file_whose_name_is_no_text_is_left_alone() -> None:
    save("a", loss=[1.0])
    for ending in (b".parquet", b".jsonl"):
        Path(os.fsdecode(os.fsencode(get_experiments_dir()) + b"/\xff" + ending)).touch()
    assert names(Catalogue()) == ["a"] and Catalogue().broken == []


@pytest.mark.parametrize("record", [[1], 5, None, {}, {"kind": "row"}, {"kind": "start"}], ids=str)
def test_a_log_of_something_else_is_named_and_hides_nothing(record: Any) -> None:
    save("a", loss=[1.0])
    append_records(get_experiments_dir() / "odd.jsonl", [record])
    catalogue = Catalogue()
    assert names(catalogue) == ["a"]
    assert [broken.file for broken in catalogue.broken] == ["odd.jsonl"]


# --- ranking ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_diverged_run_is_never_ranked_before_a_sound_one(bad: float) -> None:
    save("diverged", loss=[0.1, bad], accuracy=[0.99, bad])
    save("never", loss=[bad, bad], accuracy=[bad, bad])
    save("sound", loss=[3.0, 2.0], accuracy=[0.1, 0.2])
    for metric in ("loss", "accuracy"):
        assert ranked(metric)[0] == "sound"
        assert sorted(ranked(metric)) == ["diverged", "never", "sound"]
    best = {manifest["name"]: summary for manifest, summary in Catalogue().best("loss")}
    assert best["diverged"].diverged and best["never"].diverged and not best["sound"].diverged
    assert best["diverged"].best("min") == 0.1 and best["never"].best("min") is None


def test_a_run_that_recovered_from_a_nan_counts() -> None:
    save("recovered", loss=[2.0, math.nan, 0.5])
    save("plain", loss=[1.0])
    assert ranked("loss") == ["recovered", "plain"]
    summary = Catalogue().best("loss")[0][1]
    assert (summary.minimum, summary.minimum_step, summary.non_finite, summary.num_values) == (
        0.5,
        2,
        1,
        3,
    )


def test_a_summary_holds_first_last_extremes_and_their_steps() -> None:
    save("a", loss=[3.0, 1.0, 5.0, 1.0, 4.0])
    (summary,) = Catalogue().summaries("loss")
    assert (summary.first, summary.last, summary.last_step, summary.num_values) == (3.0, 4.0, 4, 5)
    assert (summary.minimum, summary.minimum_step) == (1.0, 1), "the first time it was reached"
    assert (summary.maximum, summary.maximum_step) == (5.0, 2)


@pytest.mark.parametrize(
    ("metric", "direction"),
    [
        ("loss", "min"),
        ("val_loss", "min"),
        ("perplexity", "min"),
        ("bits_per_byte", "min"),
        ("accuracy", "max"),
        ("top5_accuracy", "max"),
        ("tokens_per_second", "max"),
        ("step_seconds", "min"),
        ("Loss", "min"),
        ("lr", None),
        ("glossary", None),
        ("grad_norm", None),
        ("lossless", None),
    ],
)
def test_the_direction_of_a_metric_is_known_only_where_it_is_certain(
    metric: str, direction: str | None
) -> None:
    assert metric_direction(metric) == direction


def test_an_unknown_direction_is_asked_for_and_then_obeyed() -> None:
    save("low", reward=[1.0])
    save("high", reward=[2.0])
    with pytest.raises(ExperimentError) as caught:
        ranked("reward")
    assert "--max" in caught.value.hint and "--min" in caught.value.hint
    assert ranked("reward", direction="max") == ["high", "low"]
    assert ranked("reward", direction="min") == ["low", "high"]


def test_the_split_that_judges_is_test_then_val_then_train_then_any() -> None:
    assert preferred_split(["train", "val", "test"]) == "test"
    assert preferred_split(["train", "validation"]) == "validation"
    assert preferred_split(["train", "val"]) == "val"
    assert preferred_split(["other", "another"]) == "another"
    save("overfitted", split="train", loss=[0.1])
    save("honest", split="val", loss=[1.0])
    assert ranked("loss") == ["honest"]
    assert ranked("loss", split="train") == ["overfitted"]
    with pytest.raises(ExperimentError, match="split 'vla'") as caught:
        ranked("loss", split="vla")
    assert "'val'" in caught.value.hint


def save_both(name: str, quick: list[float], full: list[float]) -> None:
    """As a Trainer with training.eval_batches logs them."""
    steps = [*range(len(quick)), *range(len(quick) - len(full), len(quick))]
    splits = ["val_quick"] * len(quick) + ["val"] * len(full)
    save_experiment(name, pd.DataFrame({"step": steps, "split": splits, "loss": quick + full}))


def test_a_loss_of_few_batches_ranks_after_every_loss_of_the_whole_split() -> None:
    save_both("whole", quick=[2.0, 1.3085], full=[1.3561])
    save_both("worse", quick=[2.0, 1.2], full=[1.9])
    save_both("unfinished", quick=[2.0, 1.31], full=[])
    save_both("begun", quick=[2.0], full=[])
    save_both("diverged", quick=[2.0, 1.0], full=[1.0, math.nan])
    save("other", split="train", loss=[0.1])
    found = [(s.name, s.split, s.minimum) for _, s in Catalogue().best("loss")]
    assert found == [
        ("whole", "val", 1.3561),
        ("worse", "val", 1.9),
        ("unfinished", "val_quick", 1.31),
        ("begun", "val_quick", 2.0),
        ("diverged", "val", 1.0),
    ]
    assert ranked("loss", top=1) == ["whole"]
    assert ranked("loss", split="val") == ["whole", "worse", "diverged"]
    quick = ["diverged", "worse", "whole", "unfinished", "begun"]
    assert ranked("loss", split="val_quick") == quick
    assert Catalogue().quick_alone("loss") == ["begun", "unfinished"]
    listed = {run.name: (run.best_loss, run.split) for run in Catalogue().overview()}
    assert listed["whole"] == (1.3561, "val") and listed["begun"] == (2.0, "val_quick")
    assert listed["other"] == (0.1, "train")


def test_few_batches_stand_in_for_no_other_split_than_val() -> None:
    save_both("unfinished", quick=[1.0], full=[])
    save("tested", split="test", loss=[2.0])
    assert ranked("loss") == ["tested"]


def test_where_nobody_has_evaluated_the_whole_split_few_batches_judge() -> None:
    save_both("a", quick=[2.0, 1.0], full=[])
    save_both("b", quick=[1.5], full=[])
    save("trained", split="train", loss=[0.1])
    assert ranked("loss") == ["a", "b"]


def test_an_unknown_metric_is_told_with_the_nearest_one() -> None:
    with pytest.raises(ExperimentError) as caught:
        ranked("loss")
    assert caught.value.hint == "there are no experiments yet"
    save("a", perplexity=[1.0])
    with pytest.raises(ExperimentError) as caught:
        ranked("perplexty")
    assert "perplexity" in caught.value.hint


def test_a_run_that_is_still_going_is_listed_and_ranked() -> None:
    save("done", loss=[1.0])
    run = start_experiment("going")
    run.log({"loss": 0.5}, step=1, split="val")
    statuses = {manifest["name"]: manifest["status"] for manifest in Catalogue().manifests}
    assert statuses == {"done": "finished", "going": "running"}
    assert ranked("loss") == ["going", "done"]
    run.log({"loss": 0.25}, step=2, split="val")
    assert Catalogue().best("loss")[0][1].minimum == 0.25
    run.finish()
    assert ranked("loss") == ["going", "done"]


def test_a_name_that_is_claimed_but_not_yet_started_is_no_error() -> None:
    claim_name("a_moment_ago")
    catalogue = Catalogue()
    assert catalogue.manifests == [] and catalogue.broken == []
    assert query_rows("SELECT * FROM runs")[1] == []


@pytest.mark.parametrize("status", ["finished", "interrupted", "failed"])
def test_a_run_that_ends_after_the_catalogue_was_read_has_not_died(status: str) -> None:
    run = start_experiment("exp")
    run.log({"loss": 1.0}, step=0)
    catalogue = Catalogue()
    run.finish(status)
    assert [run.status for run in catalogue.overview()] == [status]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, None),
        (0, "0s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (75, "1m15s"),
        (3599.9, "1h00m"),
        (90000, "25h00m"),
    ],
)
def test_durations_are_rounded_before_they_are_split(
    seconds: float | None, text: str | None
) -> None:
    save_experiment("a", pd.DataFrame({"loss": [1.0]}), {"duration": seconds, "tags": ["x", "y"]})
    (row,) = Catalogue().listing()
    assert row[:3] == ["a", "finished", ""] and row[4:] == [text, None, 0, 1.0, "train", "x, y"]


def both_ways() -> None:
    """What the catalogue has followed is what it would read from the files anew."""
    followed = sorted(open_catalogue().summaries(), key=repr), repr(open_catalogue().manifests)
    cache().unlink()
    read_anew = sorted(open_catalogue().summaries(), key=repr), repr(open_catalogue().manifests)
    assert followed == read_anew


VALUES = st.one_of(st.floats(), st.integers(-3, 3).map(float))
ROWS = st.lists(
    st.tuples(
        st.sampled_from(["train", "val"]),
        st.dictionaries(st.sampled_from(["loss", "acc", "x"]), VALUES, max_size=3),
    ),
    max_size=6,
)


@pytest.mark.slow
@examples(25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(ROWS, st.sampled_from(["", "resume", "update"])), max_size=5))
def test_a_log_that_is_followed_says_what_the_whole_log_says(
    parts: list[tuple[list[tuple[str, dict[str, float]]], str]],
) -> None:
    name = f"run_{time.time_ns()}"  # hypothesis keeps the folder for all examples
    run = start_experiment(name, system_metrics_seconds=None)
    for rows, then in parts:
        for split, metrics in rows:
            run.log(metrics, step=run.rows, split=split)
        both_ways()
        if then == "resume":
            run.resume_from(run.rows // 2)
        if then == "update":
            run.update(tokens=run.rows)
        both_ways()
    live = sorted(Catalogue().summaries(), key=repr)
    run.finish()
    assert sorted(Catalogue().summaries(), key=repr) == live, "of its Parquet file, by columns"
    delete_experiments([name])


def test_only_what_was_appended_to_a_log_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    run = start_experiment("live", system_metrics_seconds=None)
    for step in range(100):
        run.log({"loss": float(step)}, step=step)
    open_catalogue()
    starts = []
    real = log.read_records
    monkeypatch.setattr(
        log, "read_records", lambda path, start=0: starts.append(start) or real(path, start)
    )
    run.log({"loss": -1.0}, step=100)
    (summary,) = open_catalogue().summaries("loss")
    assert (summary.num_values, summary.minimum, summary.first) == (101, -1.0, 0.0)
    assert starts and all(start > 0 for start in starts)
    run.finish()


def test_another_log_of_the_same_name_is_read_from_its_beginning() -> None:
    with pytest.raises(RuntimeError), start_experiment("a") as run:
        run.log({"loss": 5.0}, step=0)
        open_catalogue()
        raise RuntimeError
    store.log_path("a").unlink()
    with start_experiment("a", project="a longer manifest than before" * 10) as run:
        for step in range(5):
            run.log({"accuracy": 0.5}, step=step)
        assert [s.metric for s in open_catalogue().summaries(name="a")] == ["accuracy"]
