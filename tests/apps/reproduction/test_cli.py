"""The command line of a reproduction: what it means, what it refuses, and that it goes on after any end."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from apps.reproduction.cli import parse_arguments
from common.utils import query_experiments
from tests.budget import budget, repeat
from tests.conftest import RunTool

PAPER = Path(__file__).with_name("tiny_paper.py")
Run = Callable[..., tuple[int, str, str]]


def parsed(monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[int | None, list[str]]:
    monkeypatch.setattr(sys, "argv", ["reproduce.py", *words])
    arguments = parse_arguments("", "paper", ["a", "b", "c"], reduced=["c"])
    return arguments.seeds, arguments.only


@pytest.mark.parametrize(
    ("words", "seeds", "variants"),
    [
        ("", None, "c"),
        ("--full", None, "abc"),
        ("--full --seeds 4 --only b", 4, "b"),
        ("--only b a", None, "ab"),  # in the order of the table
        ("--seeds 1", 1, "c"),
    ],
)
def test_what_is_run(
    monkeypatch: pytest.MonkeyPatch, words: str, seeds: int | None, variants: str
) -> None:
    assert parsed(monkeypatch, *words.split()) == (seeds, list(variants))


@pytest.mark.parametrize("words", ["--seeds 0", "--seeds x", "--jobs -1", "--only d"])
def test_what_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    with pytest.raises(SystemExit) as refused:
        parsed(monkeypatch, *words.split())
    assert refused.value.code == 2
    error = capsys.readouterr().err
    assert words.split()[0] in error and "positive_int" not in error


def start(*words: str, seconds_a_step: float = 0.0) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(PAPER), *words],
        env=os.environ | {"SECONDS_A_STEP": str(seconds_a_step)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.fixture
def run(run_tool: RunTool) -> Run:
    """(exit code, standard output, standard error) of the whole command."""

    def run(*words: str) -> tuple[int, str, str]:
        done = run_tool(PAPER, *words, env={"SECONDS_A_STEP": "0"}, timeout=120)
        return done.returncode, done.stdout, done.stderr

    return run


def wait_for_rows(count: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        rows = query_experiments("SELECT count(*) AS n FROM experiments")
        if rows["n"][0] >= count:
            return
        time.sleep(0.3)  # the question itself takes the core from the process
    raise AssertionError("no rows came")


@pytest.mark.slow
def test_seeds_are_obeyed_and_the_tables_can_be_read_by_programs(tmp_path: Path, run: Run) -> None:
    figure = tmp_path / "new" / "figure.svg"
    code, out, err = run("--seeds", "2", "--format", "json", "--figure", str(figure), "--jobs", "1")
    assert code == 0, err
    rows = json.loads(out)
    assert [row["table"] for row in rows] == ["steps (reduced: half the steps)", "begun at"]
    assert (rows[0]["seeds"], rows[0]["verdict"]) == ("2", "needs 3 seeds")
    assert figure.read_text().startswith("<?xml") and str(figure) in err
    code, out, err = run("--full", "--format", "csv", "--figure", str(figure))
    lines = list(csv.DictReader(io.StringIO(out)))
    assert [(line["row"], line["seeds"], line["verdict"]) for line in lines[:2]] == [
        ("near", "3", "reproduced"),
        ("far", "3", "control"),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["figure", "figure.doc", "file/figure.png"])
def test_a_figure_that_cannot_be_written_is_refused_before_anything_runs(
    tmp_path: Path, name: str, run: Run
) -> None:
    (tmp_path / "file").touch()
    code, out, err = run("--figure", str(tmp_path / name))
    assert (code, out) == (2, "")
    assert "error [" in err and "Traceback" not in err
    assert query_experiments("SELECT name FROM runs").empty


@pytest.mark.slow
@repeat(
    ("number", "jobs"),
    [
        (signal.SIGKILL, "2"),
        (signal.SIGINT, "1"),
        (signal.SIGTERM, "1"),
        (signal.SIGINT, "2"),
        (signal.SIGTERM, "2"),
        (signal.SIGKILL, "1"),
    ],
    few=2,
)
def test_the_same_command_goes_on_after_any_end(
    jobs: str, number: signal.Signals, run: Run
) -> None:
    seeds = budget("3", "5")
    process = start("--jobs", jobs, "--seeds", seeds, seconds_a_step=1.5)
    wait_for_rows(2)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    _, err = process.communicate(timeout=13)  # another run would take 15 seconds
    if number != signal.SIGKILL:
        assert process.returncode == 128 + number
        assert err.strip().endswith("the same command continues") and "Traceback" not in err
    _, alive = psutil.wait_procs(children, timeout=15)
    assert not alive, "workers outlive their parent"
    code, out, err = run("--jobs", jobs, "--seeds", seeds, "--format", "json")
    assert code == 0, err
    begun = next(row for row in json.loads(out) if row["table"] == "begun at")
    assert begun["ours"] != "0 ± 0"  # something was there already


@pytest.mark.slow
def test_a_second_process_is_refused_and_does_no_harm(run: Run) -> None:
    first = start("--jobs", "1", "--seeds", "1", seconds_a_step=0.7)
    wait_for_rows(1)
    code, _, err = run("--jobs", "1", "--seeds", "1")
    assert code == 2 and "error [experiment]" in err and "running" in err
    out, err = first.communicate(timeout=60)
    assert first.returncode == 0, err
    assert "begun at" in out
