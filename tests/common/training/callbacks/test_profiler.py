"""The profiler: what it records, where it writes it, and that it changes nothing."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from common.training import Callback, Trainer
from common.training.callbacks.profiler import Profiler
from common.utils import start_experiment
from tests.tiny_training import same_weights, train

pytestmark = pytest.mark.slow
WRITTEN = ["operators.txt", "trace.json"]


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir()) if directory.exists() else []


def steps_in(directory: Path) -> int:
    """The number of optimizer steps in the trace."""
    events: list[dict[str, Any]] = json.loads((directory / "trace.json").read_text())["traceEvents"]
    return sum(str(event.get("name")).startswith("Optimizer.step#") for event in events)


class Fail(Callback):
    def on_step(self, trainer: Trainer) -> None:
        if trainer.step == 4:
            raise RuntimeError("lost")


@pytest.mark.parametrize(("first", "last"), [(3, 5), (1, 2), (2, 2), (6, 6), (1, 6)])
def test_it_records_the_steps_it_was_asked_for(
    tmp_path: Path, first: int, last: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(Profiler(tmp_path, first, last))
    assert names(tmp_path) == WRITTEN
    assert steps_in(tmp_path) == last - first + 1
    table = (tmp_path / "operators.txt").read_text()
    assert "aten::addmm" in table and "Self CPU" in table
    assert f"profiled up to step {last}: " in capsys.readouterr().err


def test_it_changes_nothing_of_the_training(tmp_path: Path) -> None:
    assert same_weights(train(), train(Profiler(tmp_path, 2, 4)))


def test_a_training_that_ends_early_leaves_what_was_recorded(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="lost"):
        train(Profiler(tmp_path, 3, 6), Fail())
    assert steps_in(tmp_path) == 2


def test_a_training_that_ends_before_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(Profiler(tmp_path, 8, 9))
    assert names(tmp_path) == []
    assert "training ended before step 8" in capsys.readouterr().err


def test_a_resume_counts_the_steps_from_the_beginning(tmp_path: Path) -> None:
    run = start_experiment("exp")
    with pytest.raises(RuntimeError), run:
        train(Fail(), run=run)
    with start_experiment("exp", resume=True) as again:  # from step 2
        train(Profiler(tmp_path / "past", 1, 2), Profiler(tmp_path, 4, 4), run=again, resume=True)
    assert names(tmp_path / "past") == []
    assert steps_in(tmp_path) == 1
