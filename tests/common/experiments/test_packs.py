"""Packs: what moves into one is the same as before, wherever a process is killed on the way."""

from __future__ import annotations

import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from apps.experiments.deleting import delete_experiments, unpack_experiment
from common.errors import ExperimentError
from common.experiments import packing, store
from common.experiments.annotate import annotate_experiment
from common.experiments.catalogue import Catalogue
from common.experiments.names import next_name
from common.experiments.packing import pack_cold_experiments, pack_experiments
from common.experiments.packs import read_pack
from common.experiments.parquet import read_parquet
from common.utils import query_experiments, save_experiment, start_experiment
from common.utils.paths import get_experiments_dir
from tests.budget import budget


def save(name: str, rows: int = 3, **columns: list[float]) -> None:
    values = {"loss": [i / 7 for i in range(rows)], **columns}
    save_experiment(name, pd.DataFrame(values), {"config": {"name": name}, "seed": rows})


def everything() -> tuple[Any, ...]:
    """What the store says, in every way in which it can be asked."""
    catalogue = Catalogue()
    assert catalogue.broken == []
    manifests = [{k: v for k, v in m.items() if k != "file"} for m in catalogue.manifests]
    rows = query_experiments("SELECT * FROM experiments ORDER BY experiment_name, step")
    columns = sorted(rows.columns)
    summaries = sorted(repr(summary) for summary in catalogue.summaries())
    return manifests, rows[columns].to_json(double_precision=15), columns, summaries


def pack_files() -> list[Path]:
    return sorted(store.packs_dir().glob("*.parquet"))


def loose_names() -> list[str]:
    return sorted(path.stem for path in get_experiments_dir().glob("*.parquet"))


def test_a_packed_experiment_says_what_it_said_before() -> None:
    save("a", accuracy=[0.1, math.nan, 0.3])
    save("b.2", rows=1000)
    save("c", rows=1, loss=[math.inf], other=[-math.inf])
    annotate_experiment("c", note="kept")
    before = everything()
    assert pack_experiments() == 3
    assert loose_names() == [] and len(pack_files()) == 1
    assert everything() == before
    (get_experiments_dir() / ".catalogue.sqlite").unlink()
    assert everything() == before


def test_what_is_unpacked_is_byte_for_byte_the_experiment_that_was_packed() -> None:
    for name in "abc":
        save(name, rows=5, **{f"only_{name}": [1.0, 2.0, math.nan, 4.0, 5.0]})
    before = everything()
    tables = {name: read_parquet(store.parquet_path(name)) for name in "abc"}
    pack_experiments()
    path = unpack_experiment("b")
    assert loose_names() == ["b"]
    manifest, table = read_parquet(path)
    assert manifest == tables["b"][0] and str(table.to_pylist()) == str(tables["b"][1].to_pylist())
    assert table.column_names == tables["b"][1].column_names
    assert [m["name"] for m, _ in read_pack(pack_files()[0])] == ["a", "c"]
    assert everything() == before
    with pytest.raises(ExperimentError, match="in no pack"):
        unpack_experiment("b")
    with pytest.raises(ExperimentError, match="no experiment 'x'"):
        unpack_experiment("x")
    unpack_experiment("a")
    unpack_experiment("c")
    assert pack_files() == [] and everything() == before


@pytest.mark.slow
@pytest.mark.attack
def test_a_run_of_many_metrics_is_stored_packed_and_read_in_time() -> None:
    count = budget(2000, 5000)
    metrics = {f"layer_{number}/norm": float(number) for number in range(count)}
    run = start_experiment("wide")
    run.log(metrics, step=0)
    started = time.process_time()
    run.finish()
    pack_experiments()
    assert len(Catalogue().summaries()) == count
    assert time.process_time() - started < budget(
        4, 20
    )  # 3 s for 5,000, and 50 s when a list was made for every column
    wide = query_experiments('SELECT "layer_1999/norm" AS norm FROM experiments')
    assert wide["norm"].tolist() == [1999.0]


def test_spellings_that_differ_in_case_never_meet_in_one_file() -> None:
    save_experiment("a", pd.DataFrame({"Loss": [1.0]}))
    save_experiment("b", pd.DataFrame({"loss": [2.0]}))
    assert pack_experiments() == 1
    assert query_experiments("SELECT SUM(loss) AS s FROM experiments")["s"].item() == 3.0
    assert pack_experiments() == 1 and len(pack_files()) == 2
    assert query_experiments("SELECT SUM(loss) AS s FROM experiments")["s"].item() == 3.0


def test_a_packed_name_is_taken() -> None:
    save("a_001")
    pack_experiments()
    with pytest.raises(ExperimentError, match="already exists") as caught:
        save("a_001")
    assert "a_002" in caught.value.hint
    with pytest.raises(ExperimentError, match="is finished"):
        start_experiment("a_001", resume=True)
    assert not store.log_path("a_001").exists()


def test_the_next_free_name_is_found_with_one_look_at_the_catalogue(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for number in range(1, 6):
        save(f"a_00{number}")
    pack_experiments()
    looks = []
    look = Catalogue.__init__
    monkeypatch.setattr(Catalogue, "__init__", lambda self: looks.append(1) or look(self))
    assert next_name("a_000") == "a_006"
    assert len(looks) == 1


def test_a_run_that_was_left_can_be_resumed_in_a_store_with_packs() -> None:
    save("a")
    pack_experiments()
    run = start_experiment("left")
    run.log({"loss": 1.0}, step=0)
    run.finish("interrupted")
    resumed = start_experiment("left", resume=True)
    resumed.resume_from(1)
    resumed.log({"loss": 2.0}, step=1)
    resumed.finish()
    assert query_experiments("SELECT loss FROM experiments WHERE experiment_name = 'left'")[
        "loss"
    ].tolist() == [1.0, 2.0]


def test_an_experiment_without_rows_and_a_broken_one_stay_where_they_are() -> None:
    start_experiment("empty").finish()
    save("cut")
    save("good")
    path = store.parquet_path("cut")
    path.write_bytes(path.read_bytes()[:-20])
    assert pack_experiments() == 1
    assert loose_names() == ["cut", "empty"]
    assert [broken.file for broken in Catalogue().broken] == ["cut.parquet"]


def test_deleting_from_a_pack_leaves_the_others() -> None:
    for name in "abc":
        save(name)
    pack_experiments()
    delete_experiments(["a", "c"])
    assert Catalogue().names() == ["b"] and len(pack_files()) == 1
    delete_experiments(["b"])
    assert Catalogue().names() == [] and pack_files() == []


@pytest.mark.parametrize("names", ["abc", "ab"])
def test_what_was_deleted_does_not_come_back_when_its_void_pack_was_left_behind(names: str) -> None:
    for name in names:
        save(name)
    pack_experiments()
    (first,) = pack_files()
    whole = first.read_bytes()
    delete_experiments(["a"])
    first.write_bytes(whole)  # as if the process had been killed before it removed it
    delete_experiments(["b"])
    (get_experiments_dir() / ".catalogue.sqlite").unlink()
    assert Catalogue().names() == list(names[2:]) and Catalogue().broken == []


def test_the_coldest_are_packed_when_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(7):
        save(f"run_{number}")
        os.utime(store.parquet_path(f"run_{number}"), (number, number))
    monkeypatch.setattr(packing, "LOOSE_LIMIT", 7)
    monkeypatch.setattr(packing, "PACK_SIZE", 4)
    assert pack_cold_experiments() == 0
    save("run_7")
    assert loose_names() == ["run_4", "run_5", "run_6", "run_7"]
    assert len(pack_files()) == 1  # a whole one: the rest waits for the next
    assert Catalogue().names() == [f"run_{number}" for number in range(8)]


@pytest.mark.attack
def test_a_cut_pack_is_named_and_the_rest_of_the_store_stays_readable() -> None:
    for name in "abc":
        save(name)
    pack_experiments()
    save("loose")
    (pack,) = pack_files()
    whole = pack.read_bytes()
    for size in range(0, len(whole), budget(500, 97)):
        pack.write_bytes(whole[:size])
        catalogue = Catalogue()
        assert [broken.file for broken in catalogue.broken] == [f"packs/{pack.name}"]
        assert catalogue.names() == ["loose"]
    pack.write_bytes(whole)
    assert Catalogue().names() == ["a", "b", "c", "loose"]


def test_the_same_experiment_in_two_packs_is_never_counted_twice() -> None:
    save("a")
    save("b")
    pack_experiments()
    (pack,) = pack_files()
    (pack.parent / "9999999999999999999.parquet").write_bytes(pack.read_bytes())
    catalogue = Catalogue()
    assert catalogue.names() == ["a", "b"] and catalogue.broken == []
    assert query_experiments("SELECT COUNT(*) AS n FROM experiments")["n"].item() == 6


MOVER = """
import sys
from apps.experiments.deleting import unpack_experiment
from common.experiments import packing, packs
packing.PACK_SIZE = 5
print("ready", flush=True)
while True:
    packing.pack_experiments()
    for name in sys.argv[1:]:
        unpack_experiment(name)
"""


@pytest.mark.attack
@pytest.mark.slow
def test_nothing_is_lost_or_doubled_when_packing_is_killed_anywhere() -> None:
    names = [f"run_{number}" for number in range(12)]
    for name in names:
        save(name, rows=50)
    before = everything()
    rng = random.Random(0)
    for _ in range(budget(2, 12)):
        mover = subprocess.Popen(
            [sys.executable, "-c", MOVER, *names[::3]], stdout=subprocess.PIPE, text=True
        )
        try:
            assert mover.stdout is not None
            mover.stdout.readline()
            time.sleep(rng.uniform(0.0, 0.5))
        finally:
            mover.send_signal(signal.SIGKILL)
            mover.wait()
        assert everything() == before


@pytest.mark.attack
@pytest.mark.slow
def test_readers_see_every_row_while_experiments_move_in_and_out_of_packs() -> None:
    names = [f"run_{number}" for number in range(12)]
    for name in names:
        save(name, rows=50)
    mover = subprocess.Popen(
        [sys.executable, "-c", MOVER, *names[::3]], stdout=subprocess.PIPE, text=True
    )
    try:
        assert mover.stdout is not None
        mover.stdout.readline()
        query_experiments("SELECT 1")  # imports what it needs
        until = time.monotonic() + budget(2.0, 6.0)
        counted = []
        while time.monotonic() < until or len(counted) < 3:  # a busy machine asks less often
            rows = query_experiments(
                "SELECT COUNT(*) AS n, COUNT(DISTINCT experiment_name) AS names FROM experiments"
            )
            counted.append((rows["n"].item(), rows["names"].item(), len(Catalogue().names())))
        still_going = mover.poll() is None
    finally:
        mover.kill()
        mover.wait()
    assert still_going and len(counted) > 2 and set(counted) == {(600, 12, 12)}
