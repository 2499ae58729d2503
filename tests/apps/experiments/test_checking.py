"""Deleting and checking, in the states that crashes and people leave a store in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from apps.experiments.checking import check_store
from apps.experiments.deleting import delete_experiments
from common.experiments import store
from common.experiments.catalogue import Catalogue
from common.experiments.names import exists
from common.utils import save_experiment, start_experiment
from common.utils.paths import get_experiments_dir, get_runs_dir
from tests.budget import budget


def save(name: str) -> None:
    save_experiment(name, pd.DataFrame({"loss": [1.0, 2.0]}))


def test_what_is_no_file_is_named_and_the_check_goes_on() -> None:
    save("a")
    directory = get_experiments_dir()
    for file in ("folder.parquet", "other.jsonl", "packs/folder.parquet"):
        (directory / file).mkdir(parents=True)
    for file in ("gone.parquet", "lost.jsonl", "packs/gone.parquet", ".x.lock", ".x.tmp"):
        (directory / file).symlink_to("/nowhere")
    named = {finding.file for finding in check_store()}
    assert named >= {
        *("folder.parquet", "other.jsonl", "packs/folder.parquet"),
        *("gone.parquet", "lost.jsonl", "packs/gone.parquet"),
    }
    assert Catalogue().names() == ["a"]


def test_the_log_of_a_run_whose_parquet_file_is_damaged_is_never_removed() -> None:
    run = start_experiment("a")
    run.log({"loss": 1.0}, step=0)
    log = store.log_path("a").read_bytes()
    run.finish()
    whole = store.parquet_path("a").read_bytes()
    store.log_path("a").write_bytes(log)
    store.parquet_path("a").write_bytes(whole[:-9])
    assert [finding.mended for finding in check_store()] == [False]
    assert store.log_path("a").read_bytes() == log
    store.parquet_path("a").write_bytes(whole)
    assert [(finding.file, finding.mended) for finding in check_store()] == [("a.jsonl", True)]


def test_a_run_folder_on_another_disk_is_unlinked_and_left_there(tmp_path: Path) -> None:
    run = start_experiment("a")
    run.log({"loss": 1.0}, step=0)
    run.finish()
    run.directory.rename(tmp_path / "other_disk")
    run.directory.symlink_to(tmp_path / "other_disk")
    delete_experiments(["a"])
    assert not exists("a") and not (get_runs_dir() / "a").is_symlink()
    assert (tmp_path / "other_disk" / "manifest.json").exists()


@pytest.mark.attack
@pytest.mark.slow
def test_a_check_never_fails_a_run_that_is_finishing_nor_the_other_way_round() -> None:
    runs = budget(15, 60)
    script = """
import sys
from common.experiments.run import start_experiment
for i in range(int(sys.argv[1])):
    with start_experiment(f"r_{i}") as run:
        run.log({"loss": 1.0, "x" * 100_000: 2.0}, step=0)
"""
    command = [sys.executable, "-c", script, str(runs)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    findings = []
    while process.poll() is None:
        findings += check_store()
    assert process.communicate()[1] == "" and process.returncode == 0
    assert [finding for finding in findings if "checksum" in finding.problem] == []
    assert len(Catalogue().names()) == runs
