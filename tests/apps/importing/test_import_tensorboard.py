"""TensorBoard data written by the real writers comes back number for number."""

from __future__ import annotations

import math
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.metadata import create_summary_metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams, scalar

from apps.importing import import_experiments
from common.errors import MissingPackageError
from tests.imported_runs import (
    check_cuts,
    column,
    import_one,
    stored_manifest,
    stored_rows,
    stored_values,
)

START = 1_700_000_000.0


def as_float32(value: float) -> float:
    return float(struct.unpack("f", struct.pack("f", value))[0])


def write_events(path: Path, events: list[Event]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        writer = RecordWriter(file)
        for event in [Event(wall_time=START, file_version="brain.Event:2"), *events]:
            writer.write(event.SerializeToString())
    return path


def old_scalar(tag: str, step: int, value: float, seconds: float = 1.0) -> Event:
    summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
    return Event(wall_time=START + seconds, step=step, summary=summary)


def test_scalars_of_both_kinds_become_rows_by_split(tmp_path: Path) -> None:
    writer = SummaryWriter(str(tmp_path / "runs" / "exp 1"))
    for step in range(5):
        writer.add_scalar("train/loss", 1 / (step + 1), step, walltime=START + step)
        writer.add_scalar("val/loss", 2 / (step + 1), step, START + step + 0.5, new_style=True)
        writer.add_scalar("val/loss_twice", math.nan, step, START + step, double_precision=True)
    writer.add_histogram("weights", np.array([1.0, 2.0]), 0)
    writer.add_text("note", "hello", 0)
    writer.close()

    name = import_one(tmp_path / "runs")

    assert name == "exp-1"
    assert column(name, "loss") == [(s, as_float32(1 / (s + 1))) for s in range(5)]
    assert column(name, "loss", "val") == [(s, as_float32(2 / (s + 1))) for s in range(5)]
    assert all(math.isnan(value) for _, value in column(name, "loss_twice", "val"))
    assert {key for row in stored_rows(name) for key in row} == {
        *("experiment_name", "step", "split", "time", "loss", "loss_twice")
    }


def test_times_count_from_the_start_and_nothing_of_this_machine_is_recorded(tmp_path: Path) -> None:
    events = [old_scalar("loss", step, 1.0, seconds=10.0 * step) for step in (1, 2, 3)]
    write_events(tmp_path / "run" / "events.out.tfevents.1700000000.node-7.example.org", events)

    name = import_one(tmp_path / "run", project="old")

    assert [row["time"] for row in stored_rows(name)] == [10.0, 20.0, 30.0]
    manifest = stored_manifest(name)
    assert manifest["started"] == "2023-11-14T22:13:20.000+00:00"
    assert manifest["duration"] == 30.0
    assert manifest["host"] == "node-7.example.org"
    assert (manifest["status"], manifest["project"]) == ("finished", "old")
    assert manifest["tags"] == ["imported"]
    assert manifest["git_commit"] is None
    assert not {"argv", "packages", "pid", "python", "platform"} & manifest.keys()


def test_tensors_that_are_marked_as_scalars_only_once(tmp_path: Path) -> None:
    first, second = (scalar("train/acc", v, new_style=True) for v in (0.25, 0.5))
    second.value[0].ClearField("metadata")
    events = [Event(wall_time=START, step=s, summary=v) for s, v in enumerate((first, second))]
    write_events(tmp_path / "run" / "events.out.tfevents.1", events)
    assert column(import_one(tmp_path), "acc") == [(0, 0.25), (1, 0.5)]


def test_hparams_become_the_configuration(tmp_path: Path) -> None:
    writer = SummaryWriter(str(tmp_path / "run"))
    writer.add_scalar("train/loss", 1.0, 0)
    # PyTorch writes them to a folder of its own, named by the time.
    writer.add_hparams({"lr": 0.1, "layers": 4, "seed": 3, "act": "relu"}, {"hparam/best": 0.5})
    writer.close()
    name = import_one(tmp_path / "run")
    manifest = stored_manifest(name)
    assert manifest["config"] == {"lr": 0.1, "layers": 4, "seed": 3, "act": "relu"}
    assert (manifest["seed"], type(manifest["config"]["layers"])) == (3, int)
    assert column(name, "hparam/best") == [(0, 0.5)]


@pytest.mark.parametrize(("status", "expected"), [(1, "finished"), (2, "failed")])
def test_the_status_of_an_hparams_session_is_kept(
    tmp_path: Path, status: int, expected: str
) -> None:
    _, start, _ = hparams({"lr": 0.5}, {})
    data = HParamsPluginData(session_end_info=SessionEndInfo(status=status))
    value = Summary.Value(tag="_hparams_/session_end_info", metadata=create_summary_metadata(data))
    summaries = [start, Summary(value=[value])]
    events = [Event(wall_time=START, summary=summary) for summary in summaries]
    write_events(tmp_path / "run" / "events.out.tfevents.1", [*events, old_scalar("loss", 0, 1.0)])
    manifest = stored_manifest(import_one(tmp_path))
    assert (manifest["status"], manifest["config"]) == (expected, {"lr": 0.5})


def test_several_files_are_one_run_and_a_restart_hides_what_was_lost(tmp_path: Path) -> None:
    for purge, steps, value in ((None, range(10), 1.0), (6, range(6, 12), 2.0)):
        writer = SummaryWriter(str(tmp_path / "run"), purge_step=purge)
        for step in steps:
            writer.add_scalar("loss/train", value, step)
        writer.close()
    name = import_one(tmp_path)
    assert column(name, "loss") == [(s, 1.0 if s < 6 else 2.0) for s in range(12)]


def test_a_restart_before_the_first_step_removes_nothing_of_other_splits(tmp_path: Path) -> None:
    restart = Event(step=0, session_log=SessionLog(status=SessionLog.START))
    for split in ("train", "validation"):
        write_events(
            tmp_path / "run" / split / "events.out.tfevents.1",
            [restart, old_scalar("epoch_loss", 1, 0.5)],
        )
    name = import_one(tmp_path)  # Keras: a folder per split
    assert name == "run"
    assert column(name, "epoch_loss") == column(name, "epoch_loss", "val") == [(1, 0.5)]


def test_each_folder_is_a_run_even_one_named_test(tmp_path: Path) -> None:
    for folder in ("a/seed 1", "a/seed 2", "test"):
        directory = tmp_path / folder
        writer = EventFileWriter(str(directory))
        writer.add_event(old_scalar("loss", 0, 0.5))
        writer.close()
    report = import_experiments(tmp_path)
    assert sorted(report.imported) == ["a-seed-1", "a-seed-2", "test"]


def test_a_folder_without_scalars_is_refused_and_the_others_are_imported(tmp_path: Path) -> None:
    write_events(tmp_path / "empty" / "events.out.tfevents.1", [])
    write_events(tmp_path / "full" / "events.out.tfevents.1", [old_scalar("loss", 0, 0.5)])
    report = import_experiments(tmp_path)
    assert report.imported == ["full"]
    assert "has no scalars" in report.refused[0][1]


def test_a_cut_file_gives_what_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    events = [old_scalar("train/loss", step, 1 / (step + 1)) for step in range(40)]
    path = write_events(tmp_path / "run" / "events.out.tfevents.1", events)
    whole = stored_values(import_one(path))
    stores = iter(range(1000))

    def fresh_store() -> None:
        monkeypatch.setenv("RESEARCH_ASSETS_DIR", str(tmp_path / f"assets{next(stores)}"))

    counts = check_cuts(tmp_path / "run", path, whole, fresh_store)
    assert counts == sorted(counts)
    assert counts[-1] == 39
    assert "is truncated or damaged: read the first" in capsys.readouterr().err


def test_a_damaged_byte_ends_the_reading(tmp_path: Path) -> None:
    path = write_events(
        tmp_path / "run" / "events.out.tfevents.1", [old_scalar("loss", s, 1.0) for s in range(20)]
    )
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    name = import_one(path)
    assert 5 < len(stored_rows(name)) < 15
    assert stored_manifest(name)["status"] == "interrupted"


def test_without_the_package_the_fix_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_events(tmp_path / "run" / "events.out.tfevents.1", [old_scalar("loss", 0, 1.0)])
    module = "tensorboard.backend.event_processing.event_file_loader"
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingPackageError) as caught:
        import_experiments(path)
    assert ".[tensorboard]" in caught.value.hint
