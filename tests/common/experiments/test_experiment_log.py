"""The live log after everything that can happen to an append-only file."""

from __future__ import annotations

import errno
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.experiments.catalogue import Catalogue
from common.experiments.log import LogWriter, read_log
from common.experiments.sql import query_rows
from common.utils import start_experiment
from common.utils.manifest import create_manifest
from common.utils.paths import get_experiments_dir
from tests.budget import budget, examples


def row(step: int, **metrics: float) -> dict[str, Any]:
    return {
        "kind": "row",
        "step": step,
        "epoch": None,
        "split": "train",
        "time": float(step),
        "metrics": metrics or {"loss": 1.0 / (abs(step) + 1)},
    }


def start(name: str = "exp") -> dict[str, Any]:
    manifest = create_manifest(name, project="p", config={}, seed=1, tags=[])
    manifest["git_diff"] = None  # of whoever runs the tests: each byte would be one to cut at
    return {"kind": "start", "manifest": manifest}


def write(path: Path, records: list[dict[str, Any]]) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    writer = LogWriter(path)
    for record in records:
        writer.append(record)
    writer.close()
    return path.read_bytes()


def steps(path: Path) -> list[int]:
    return [record["step"] for record in read_log(path).rows]


def test_every_line_is_a_checksum_and_the_json_it_was_made_of(tmp_path: Path) -> None:
    records = [start(), row(1), {"kind": "update", "manifest": {"tokens": 5}}]
    lines = write(tmp_path / "a.jsonl", records).splitlines()
    for line, record in zip(lines, records, strict=True):
        checksum, body = line[:8], line[9:]
        assert int(checksum, 16) == zlib.crc32(body)
        assert json.loads(body) == record


def test_updates_add_to_the_manifest_and_win_over_the_start(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    update = {"kind": "update", "manifest": {"parameters": 7, "seed": 2}}
    write(path, [start(), update, {"kind": "update", "manifest": {"tokens": 9}}])
    manifest = read_log(path).manifest
    assert (manifest["name"], manifest["parameters"], manifest["seed"], manifest["tokens"]) == (
        "exp",
        7,
        2,
        9,
    )


def test_a_log_cut_at_any_byte_gives_every_whole_row_and_no_error(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    whole = write(path, [start(), *(row(i) for i in range(4))])
    ends = [i for i, byte in enumerate(whole) if byte == ord("\n")]  # of each record
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        complete = sum(end <= length for end in ends)  # the line end itself may be missing
        assert steps(path) == list(range(max(complete - 1, 0)))
        assert read_log(path).damaged_lines == (
            length > 0 and length not in ends and length - 1 not in ends
        )


@pytest.mark.attack
@pytest.mark.slow
def test_a_flipped_byte_anywhere_costs_at_most_the_two_records_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    whole = write(path, [start(), *(row(i) for i in range(5))])
    truth = {record["step"]: record for record in read_log(path).rows}
    for position in range(0, len(whole), budget(4, 1)):
        for flip in budget((0x01, 0x20, 0x80)[position % 3 :][:1], (0x01, 0x20, 0x80)):
            damaged = bytearray(whole)
            damaged[position] ^= flip
            path.write_bytes(damaged)
            content = read_log(path)
            assert all(record == truth[record["step"]] for record in content.rows)
            assert len(content.rows) >= 5 - (2 if whole[position] == ord("\n") else 1)
            assert content.damaged_lines == (1 if damaged[position] != ord("\n") else 2)


def test_records_appended_after_half_a_line_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    whole = write(path, [start(), row(0), row(1)])
    for cut in (1, 5, 40):
        path.write_bytes(whole[:-cut])
        write(path, [row(2), row(3)])
        expected = [0, 1, 2, 3] if cut == 1 else [0, 2, 3]  # without its line end, row 1 is whole
        assert steps(path) == expected


def fill(directory: Path) -> Path:
    """A file that takes the rest of the disk, to the last byte."""
    path = directory / "filler"
    with path.open("wb", buffering=0) as file:
        for size in (4096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError as error:
                assert error.errno == errno.ENOSPC
    return path


def test_while_the_disk_is_full_rows_wait_and_none_is_lost_or_out_of_order(
    small_disk: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    disk = small_disk("256k")
    path = disk / "a.jsonl"
    write(path, [start(), row(0)])
    filler = fill(disk)
    writer = LogWriter(path)
    for step in range(1, 500):  # the last page of the file takes the first of them
        writer.append(row(step))
    told = capfd.readouterr().err
    assert told.count("rows wait in memory") == 1 and "a.jsonl" in told
    on_disk = steps(path)
    assert on_disk == list(range(len(on_disk))) and len(on_disk) < 500
    with pytest.raises(OSError, match=r"full|space"):
        writer.flush()
    filler.unlink()
    writer.append(row(500))
    writer.close()
    assert steps(path) == list(range(501)) and read_log(path).damaged_lines <= 1


def test_a_run_that_finishes_on_a_full_disk_keeps_what_was_stored_and_can_be_finished_later(
    small_disk: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = small_disk("2m")
    monkeypatch.setenv("RESEARCH_ASSETS_DIR", str(disk))
    run = start_experiment("a")
    for step in range(20):
        run.log({"loss": 1.0}, step=step)
    filler = fill(disk)
    with pytest.raises(OSError, match=r"space|full"):
        run.finish()
    log = get_experiments_dir() / "a.jsonl"
    assert len(steps(log)) == 20 and not log.with_suffix(".parquet").exists()
    filler.unlink()
    assert query_rows("SELECT COUNT(*) FROM experiments")[1] == [[20]]


def test_a_resume_record_drops_the_rows_after_it_and_only_those(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    failed = {"kind": "update", "manifest": {"status": "failed", "finished": "2020-01-01T00:00:00"}}
    resume = {"kind": "resume", "rows": 2, "pid": 123}
    write(path, [start(), row(0), row(1), row(2), row(3), failed, resume, row(2, loss=9.0)])
    content = read_log(path)
    assert [r["step"] for r in content.rows] == [0, 1, 2]
    assert content.rows[-1]["metrics"] == {"loss": 9.0}
    assert content.manifest["status"] == "running" and content.manifest["finished"] is None
    write(path, [{"kind": "resume", "rows": 0, "pid": 124}, row(0)])
    assert steps(path) == [0]


@given(st.binary(max_size=300))
@examples(60)
def test_any_bytes_at_all_are_read_without_an_error(
    tmp_path_factory: pytest.TempPathFactory, garbage: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "garbage.jsonl"
    path.unlink(missing_ok=True)
    whole = write(path, [start(), row(0)])
    path.write_bytes(garbage)
    assert read_log(path).rows == []
    path.write_bytes(whole + b"\n" + garbage + b"\n" + whole)
    assert steps(path) == [0, 0]


@pytest.mark.slow
@given(
    st.dictionaries(st.text(min_size=1, max_size=10), st.floats(allow_nan=False), max_size=4),
    st.integers(-(2**63), 2**63 - 1),
)
@examples(60)
def test_names_and_numbers_come_back_exactly(
    tmp_path_factory: pytest.TempPathFactory, metrics: dict[str, float], step: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "exact.jsonl"
    path.unlink(missing_ok=True)
    record = row(step) | {"metrics": metrics}
    write(path, [record])
    assert read_log(path).rows == [record]


@pytest.mark.parametrize("position", [0, 3, 20, 60])
def test_a_log_whose_first_record_is_damaged_does_not_hide_the_other_runs(position: int) -> None:
    directory = get_experiments_dir()
    write(directory / "whole.jsonl", [start("whole"), row(0)])
    update = {"kind": "update", "manifest": {"parameters": 1}}
    damaged = bytearray(write(directory / "hit.jsonl", [start("hit"), update, row(0)]))
    damaged[position] ^= 1
    (directory / "hit.jsonl").write_bytes(damaged)
    catalogue = Catalogue()
    assert "whole" in [manifest["name"] for manifest in catalogue.manifests]
    assert [broken.file for broken in catalogue.broken] == ["hit.jsonl"], "it is named, not hidden"
    assert query_rows("SELECT name FROM runs")[1] == [["whole"]]


def test_a_log_that_lost_its_first_record_and_has_only_rows_is_named() -> None:
    directory = get_experiments_dir()
    write(directory / "hit.jsonl", [row(0), row(1)])
    assert [broken.file for broken in Catalogue().broken] == ["hit.jsonl"]


def log_rows(name: str, count: int) -> Path:
    run = start_experiment(name, config={})
    for step in range(count):
        run.log({"loss": float(step)}, step=step)
    run.finish("interrupted")
    return get_experiments_dir() / f"{name}.jsonl"


def test_a_resume_says_when_the_log_lost_rows_that_were_counted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """After a power loss: a kill loses none."""
    path = log_rows("cut", 5)
    rows = [line for line in path.read_bytes().splitlines(keepends=True) if b'"row"' in line]
    path.write_bytes(path.read_bytes().replace(rows[-1], b""))
    with start_experiment("cut", resume=True) as run:
        run.resume_from(5)
        assert run.rows == 5
    assert "the log of 'cut' has 4 of the 5 rows" in capsys.readouterr().err


def forget_numbers(path: Path) -> None:
    """The log as earlier versions wrote it."""
    whole = [json.loads(line.partition(b" ")[2]) for line in path.read_bytes().splitlines()]
    path.unlink()
    for record in whole:
        record.pop("row", None)
        if record["kind"] == "start":
            del record["manifest"]["experiment_id"]
    write(path, whole)


@pytest.mark.parametrize("version", ["now", "earlier"])
@pytest.mark.parametrize("hit", [0, 3, 5])
def test_a_damaged_row_takes_the_place_of_no_other_on_a_resume(
    version: str, hit: int, capsys: pytest.CaptureFixture[str]
) -> None:
    path = log_rows("hit", 10)
    if version == "earlier":
        forget_numbers(path)
    lines = path.read_bytes().splitlines(keepends=True)
    line = next(i for i, text in enumerate(lines) if f'"step":{hit},'.encode() in text)
    lines[line] = lines[line].replace(b'"step"', b'"stop"')
    path.write_bytes(b"".join(lines))
    with start_experiment("hit", resume=True) as run:
        run.resume_from(6)  # as a checkpoint after step 5 says
        assert run.rows == 6
        live = query_rows("SELECT step FROM experiments ORDER BY step")[1]
        assert [step for (step,) in live] == [step for step in range(6) if step != hit]
        for step in range(6, 12):
            run.log({"loss": float(step)}, step=step)
        assert run.rows == 12
    stored = query_rows("SELECT step, loss FROM experiments ORDER BY step")[1]
    assert stored == [[step, float(step)] for step in range(12) if step != hit]
    error = capsys.readouterr().err
    assert "has 5 of the 6 rows" in error and f"line {line + 1} of {path}" in error


def test_rows_after_a_resume_whose_record_is_damaged_supersede_the_old_ones() -> None:
    path = log_rows("hit", 10)
    run = start_experiment("hit", resume=True)
    run.resume_from(4)
    for step in range(4, 7):
        run.log({"loss": 9.0}, step=step)
    run.finish("interrupted")
    path.write_bytes(path.read_bytes().replace(b'{"kind":"resume"', b'{"kind":"resum_"'))
    assert [(r["step"], r["metrics"]["loss"]) for r in read_log(path).rows] == [
        *[(step, float(step)) for step in range(4)],
        *[(step, 9.0) for step in range(4, 7)],
    ]
    assert query_rows("SELECT count(*) FROM experiments")[1] == [[7]]


@given(st.lists(st.integers(0, 12), min_size=1, max_size=5), st.sets(st.integers(0, 60)))
@examples(40)
def test_after_any_resumes_and_damages_each_row_counts_once_or_is_damaged(
    tmp_path_factory: pytest.TempPathFactory, resumes: list[int], damaged: set[int]
) -> None:
    """Against a list that is cut and extended as the run was."""
    path = tmp_path_factory.getbasetemp() / "numbered.jsonl"
    path.unlink(missing_ok=True)
    records: list[dict[str, Any]] = [start()]
    truth: list[int] = []
    for generation, rows in enumerate(resumes):
        for _ in range(5):
            records.append(row(len(records)) | {"row": len(truth)})
            truth.append(len(records) - 1)
        truth = truth[:rows]
        records.append({"kind": "resume", "rows": len(truth), "pid": generation})
    write(path, records)
    lines = path.read_bytes().splitlines(keepends=True)
    hit = {i for i in damaged if i < len(lines) and records[i]["kind"] == "row"}
    path.write_bytes(b"".join(b"x" * (i in hit) + line for i, line in enumerate(lines)))
    content = read_log(path)
    assert [record["step"] for record in content.rows] == [i for i in truth if i not in hit]
    assert content.next_row == len(truth) and content.num_rows == len(content.rows)
