"""What a user sees of an error: one line, one hint, an exit code; and of a reader that has left."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import (
    ConfigError,
    DataError,
    Interrupted,
    ResearchError,
    did_you_mean,
    exit_on_error,
)


def test_the_nearest_name_is_suggested_whatever_its_case() -> None:
    assert (
        did_you_mean("lerning_rate", ["seed", "learning_rate"]) == "did you mean 'learning_rate'?"
    )
    assert did_you_mean("LOSS", ["loss", "accuracy"]) == "did you mean 'loss'?"
    assert did_you_mean("xyz", ["loss", "accuracy"]) == "choose from: loss, accuracy"


def test_an_expected_error_is_a_line_a_hint_and_exit_code_2(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught, exit_on_error():
        raise DataError("there is no text", "write some")
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error [data]: there is no text\n  hint: write some\n"


def test_a_system_error_names_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught, exit_on_error():
        (tmp_path / "nothing").read_text()
    assert caught.value.code == 2
    first = capsys.readouterr().err.splitlines()[0]
    assert first == f"error [system]: {tmp_path / 'nothing'}: No such file or directory"


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError), exit_on_error():
        1 / 0  # noqa: B018


def test_the_traceback_of_an_expected_error_can_be_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RESEARCH_TRACEBACK", "1")
    with pytest.raises(ConfigError), exit_on_error():
        raise ConfigError("wrong")


def test_an_interrupted_run_exits_as_its_signal_says(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught, exit_on_error():
        raise Interrupted("saved; go on with --resume", 15)
    assert caught.value.code == 143
    assert capsys.readouterr().err == "saved; go on with --resume\n"
    with pytest.raises(SystemExit) as caught, exit_on_error():
        raise KeyboardInterrupt
    assert caught.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_every_kind_of_error_has_a_code_of_its_own() -> None:
    kinds = ResearchError.__subclasses__()
    assert len({kind.code for kind in kinds} | {ResearchError.code}) == len(kinds) + 1


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_reader_that_has_left_ends_the_output_quietly(lines: int) -> None:
    # One line stays in the buffer until the end: the pipe is found broken when it is written out.
    script = f"""
from common.errors import exit_on_error
with exit_on_error():
    input()
    for _ in range({lines}):
        print("a line of output")
"""
    buffered = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        env=buffered,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin and process.stdout and process.stderr
    process.stdout.close()  # the reader leaves ...
    process.stdin.write(b"\n")  # ... before anything is written
    process.stdin.close()
    assert (process.stderr.read(), process.wait(timeout=30)) == (b"", 0)
    process.stderr.close()


def test_an_error_that_is_caught_in_python_has_its_hint_too() -> None:
    error = ConfigError("unknown key 'lerning_rate'", "did you mean 'learning_rate'?")
    assert str(error) == "unknown key 'lerning_rate' (hint: did you mean 'learning_rate'?)"
    assert str(ConfigError("wrong")) == "wrong"
    again = pickle.loads(pickle.dumps(error))
    assert (again.message, again.hint, str(again)) == (error.message, error.hint, str(error))
