"""An object store that two machines share, over a real S3 client and a server on loopback."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from apps.experiments.checking import check_store
from apps.experiments.deleting import delete_experiments
from apps.experiments.synchronising import sync_experiments
from common.errors import ExperimentError
from common.experiments import remote
from common.experiments.catalogue import Catalogue
from common.experiments.packing import pack_experiments
from common.experiments.store import parquet_path
from common.utils import query_experiments, save_experiment, start_experiment
from common.utils.manifest import identity
from tests.s3_double import s3_server

pytestmark = pytest.mark.slow  # a server and its clients


@pytest.fixture
def objects(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with s3_server() as (uri, objects):
        monkeypatch.setenv("RESEARCH_EXPERIMENTS_URI", uri)
        yield objects


def save(name: str, *losses: float) -> None:
    save_experiment(name, pd.DataFrame({"loss": losses}), {"project": "p", "seed": 3})


def rows() -> list[str]:
    return query_experiments("SELECT * FROM experiments ORDER BY ALL").to_csv(index=False).split()


def test_what_one_machine_finishes_the_other_can_ask_about(
    objects: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save("a", 1.0, 0.5)
    with start_experiment("b") as run:
        run.log({"accuracy": 0.25}, step=3)
        assert list(objects) == ["experiments/a.parquet"], "nothing that is not finished"
    assert objects["experiments/b.parquet"] == parquet_path("b").read_bytes()
    asked, manifest = rows(), Catalogue().manifest("a")
    monkeypatch.setenv("RESEARCH_ASSETS_DIR", str(tmp_path / "other"))
    save("c", 9.0)
    assert sync_experiments() == ([], ["a", "b"])
    assert Catalogue().manifest("a") == manifest
    assert [row for row in rows() if not row.startswith("c,")] == asked
    assert check_store() == [] and sync_experiments() == ([], [])


def test_a_name_that_another_machine_used_is_never_overwritten(
    objects: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    save("a", 1.0)
    first = objects["experiments/a.parquet"]
    monkeypatch.setenv("RESEARCH_ASSETS_DIR", str(tmp_path / "other"))
    save("a", 2.0)
    second = Catalogue().place("a").id
    assert f"'a' is already in lab/experiments: this one is stored as 'a@{second[:8]}'" in (
        capfd.readouterr().err
    )
    assert objects["experiments/a.parquet"] == first and len(objects) == 2
    assert sync_experiments() == ([], ["a@" + identity(read_manifest_of(first))[:8]])
    assert losses() == {1.0, 2.0} and sync_experiments() == ([], [])


def losses() -> set[float]:
    return set(query_experiments("SELECT loss FROM experiments")["loss"])


def read_manifest_of(content: bytes) -> dict[str, Any]:
    footer = pq.ParquetFile(io.BytesIO(content)).metadata.metadata
    manifest: dict[str, Any] = json.loads(footer[b"experiment"])
    return manifest


@pytest.mark.slow
def test_machines_that_use_one_name_end_with_the_same_experiments_under_the_same_names(
    objects: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three machines, in whichever order they meet the store, finished and unfinished runs."""
    for number, machine in enumerate("xyz"):
        monkeypatch.setenv("RESEARCH_ASSETS_DIR", str(tmp_path / machine))
        with monkeypatch.context() as alone:
            alone.delenv("RESEARCH_EXPERIMENTS_URI")
            save("a", float(number))
            if machine == "z":
                start_experiment("b").finish("interrupted")
            else:
                save("b", 10.0 + number)
    for machine in "xyzxy":
        monkeypatch.setenv("RESEARCH_ASSETS_DIR", str(tmp_path / machine))
        sync_experiments()
    seen = []
    for machine in "xyz":
        monkeypatch.setenv("RESEARCH_ASSETS_DIR", str(tmp_path / machine))
        assert sync_experiments() == ([], []) and losses() == {0.0, 1.0, 2.0, 10.0, 11.0}
        table = query_experiments("SELECT experiment_name, loss FROM experiments ORDER BY loss")
        seen.append(table.to_csv())
        assert len(Catalogue().names()) == 5 + (machine == "z")
    assert seen[0] == seen[1] == seen[2] and len(objects) == 5


@pytest.mark.parametrize("is_packed", [False, True])
def test_what_was_deleted_here_does_not_come_back(
    objects: dict[str, bytes],
    is_packed: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for name in "ab":
        save(name, 1.0)
    if is_packed:
        pack_experiments()
    delete_experiments(["a"])
    assert sync_experiments() == ([], []) and Catalogue().names() == ["b"]
    assert "left out a of lab/experiments: deleted here" in capfd.readouterr().err
    save("a", 3.0)  # another one of that name is no ghost
    assert losses() == {1.0, 3.0} and sync_experiments() == ([], [])
    monkeypatch.setenv("RESEARCH_ASSETS_DIR", str(tmp_path / "other"))
    assert len(sync_experiments().downloaded) == 3, "other machines keep it"


def test_a_file_is_asked_for_its_id_once(
    objects: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save("a", 1.0)
    monkeypatch.setenv("RESEARCH_ASSETS_DIR", str(tmp_path / "other"))
    sync_experiments()
    asked: list[str] = []
    monkeypatch.setattr(remote.ObjectStore, "_read_id", lambda self, file: asked.append(file))
    assert sync_experiments() == ([], []) and asked == []


def test_packed_experiments_are_uploaded_one_by_one(
    objects: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as alone:
        alone.delenv("RESEARCH_EXPERIMENTS_URI")
        for name in "abc":
            save(name, 1.0, 2.0)
    pack_experiments()
    before = rows()
    assert sync_experiments() == (["a", "b", "c"], [])
    monkeypatch.setenv("RESEARCH_ASSETS_DIR", str(tmp_path / "other"))
    assert sync_experiments() == ([], ["a", "b", "c"]) and rows() == before


def test_a_network_that_fails_harms_nothing_and_is_made_good_later(
    objects: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as offline:
        offline.setenv("RESEARCH_EXPERIMENTS_URI", "file:///proc/nowhere")
        save("a", 1.0)
    assert "a was not copied to file:///proc/nowhere" in capfd.readouterr().err
    assert Catalogue().names() == ["a"]
    assert sync_experiments() == (["a"], []) and "experiments/a.parquet" in objects


@pytest.mark.parametrize("damage", [b"", b"PAR1 nothing", None])
def test_a_damaged_or_renamed_object_is_named_and_left_out(
    objects: dict[str, bytes],
    damage: bytes | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    save("good", 1.0)
    objects["experiments/bad.parquet"] = (
        objects["experiments/good.parquet"] if damage is None else damage
    )
    objects["experiments/notes.txt"] = b"not ours"
    monkeypatch.setenv("RESEARCH_ASSETS_DIR", str(tmp_path / "other"))
    assert sync_experiments() == ([], ["good"])
    assert "left out bad.parquet" in capfd.readouterr().err
    assert Catalogue().names() == ["good"] and Catalogue().broken == []
    save("bad", 2.0)


def test_a_shared_folder_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESEARCH_EXPERIMENTS_URI", f"file://{tmp_path}/lab")
    save("a", 1.0)
    assert [path.name for path in (tmp_path / "lab").iterdir()] == ["a.parquet"]
    monkeypatch.setenv("RESEARCH_ASSETS_DIR", str(tmp_path / "other"))
    assert sync_experiments() == ([], ["a"])


@pytest.mark.parametrize("uri", ["", "nowhere", "gopher://x/y"])
def test_a_uri_that_cannot_be_used_is_told(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESEARCH_EXPERIMENTS_URI", uri)
    with pytest.raises(ExperimentError, match="RESEARCH_EXPERIMENTS_URI"):
        sync_experiments()
