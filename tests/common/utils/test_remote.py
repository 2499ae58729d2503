"""An object store that two machines share, over a real S3 client and a server on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from common.errors import ExperimentError
from common.utils import query_experiments, save_experiment, start_experiment
from common.utils.experiment_storage.catalogue import Catalogue
from common.utils.experiment_storage.maintenance import check_store
from common.utils.experiment_storage.packs import pack_experiments
from common.utils.experiment_storage.remote import sync_experiments
from common.utils.experiment_storage.store import parquet_path
from tests.s3_double import s3_server


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
    assert "another experiment 'a' is there already" in capfd.readouterr().err
    assert objects["experiments/a.parquet"] == first and sync_experiments() == ([], [])
    assert query_experiments("SELECT loss FROM experiments")["loss"].tolist() == [2.0]


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
