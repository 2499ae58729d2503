"""Two runs compared bit for bit: what counts as a difference, and which one is named first."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from apps.reproduction.differences import (
    Difference,
    RowComparison,
    compare_weights,
    is_timing,
)
from common.errors import CheckpointError
from common.utils.system_metrics import SYSTEM_METRICS


def row(step: int, split: str = "train", epoch: float | None = None, **metrics: float) -> Any:
    return {"step": step, "split": split, "epoch": epoch, "time": None, "metrics": metrics}


def compare(then: list[Any], now: list[Any]) -> RowComparison:
    """The rows of the rerun come in two portions, as they do while it trains."""
    comparison = RowComparison(then)
    comparison.add(now[:1])
    comparison.add(now[1:])
    comparison.end()
    return comparison


def test_equal_rows_are_identical_and_their_values_counted() -> None:
    rows = [row(1, loss=2.0, norm=math.nan), row(2, loss=1.0), row(2, "val", 0.5, loss=1.5)]
    found = compare(rows, [dict(r) for r in rows])
    assert (found.first, found.rows, found.values, found.different) == (None, 3, 5, 0)


def test_the_first_difference_is_named_with_its_size() -> None:
    then = [row(1, loss=2.0), row(2, loss=2.0, norm=1.0), row(3, loss=1.0)]
    now = [row(1, loss=2.0), row(2, loss=2.0, norm=1.5), row(3, loss=0.5)]
    found = compare(then, now)
    assert found.first == Difference(2, "train", "norm", 1.0, 1.5)
    assert found.first.relative == 0.5 and found.different == 2


@pytest.mark.parametrize(
    ("then", "now"),
    [(1.0, math.nextafter(1.0, 2)), (0.0, -0.0), (math.nan, 1.0), (math.inf, -math.inf)],
)
def test_one_bit_is_a_difference(then: float, now: float) -> None:
    assert compare([row(1, loss=then)], [row(1, loss=now)]).different == 1


def test_a_relative_difference_is_that_to_the_first_run() -> None:
    assert Difference(1, "train", "loss", 4.0, 3.0).relative == 0.25
    assert Difference(1, "train", "loss", 0.0, 3.0).relative == math.inf
    assert Difference(1, "train", "loss", math.nan, 3.0).relative is None
    assert Difference(1, "train", "loss", 4.0, None).relative is None


def test_the_epoch_is_compared_and_the_time_is_not() -> None:
    then, now = row(1, epoch=0.5, loss=1.0), row(1, epoch=0.25, loss=1.0)
    assert compare([then], [now]).first == Difference(1, "train", "epoch", 0.5, 0.25)
    assert compare([then], [then | {"time": 3.0}]).first is None


def test_timing_is_left_out_and_said_to_be() -> None:
    found = compare(
        [row(1, loss=1.0, tokens_per_second=5.0, cpu_percent=3.0)],
        [row(1, loss=1.0, tokens_per_second=6.0)],
    )
    assert found.first is None and found.values == 1
    assert found.left_out == {"tokens_per_second", "cpu_percent"}


@pytest.mark.parametrize(
    "name", [*SYSTEM_METRICS, "tokens_per_second", "seconds", "step_time", "mfu", "memory_gib"]
)
def test_measures_of_speed_and_size_are_timing(name: str) -> None:
    assert is_timing(name)


@pytest.mark.parametrize(
    "name", ["loss", "perplexity", "gradient_norm", "memory_accuracy", "timely", "sentiment"]
)
def test_measures_of_the_model_are_not(name: str) -> None:
    assert not is_timing(name)


def test_rows_that_are_missing_or_too_many_are_differences() -> None:
    rows = [row(1, loss=2.0), row(2, loss=1.0)]
    assert compare(rows, rows[:1]).first == Difference(2, "train", "loss", 1.0, None)
    assert compare(rows[:1], rows).first == Difference(2, "train", "loss", None, 1.0)
    assert compare(rows, []).different == 2


def test_rows_of_other_steps_are_not_compared_with_one_another() -> None:
    found = compare([row(2, "val", loss=1.0)], [row(2, "train", loss=1.0)])
    assert found.first == Difference(2, "val", "loss", 1.0, None) and found.different == 2


def test_a_metric_that_only_one_of_them_logged_is_a_difference() -> None:
    found = compare([row(1, loss=1.0)], [row(1, loss=1.0, accuracy=0.5)])
    assert found.first == Difference(1, "train", "accuracy", None, 0.5)


def write(folder: Path, **tensors: torch.Tensor) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_equal_weights_are_identical_in_every_type(tmp_path: Path) -> None:
    torch.manual_seed(0)
    types = (torch.float32, torch.bfloat16, torch.float64, torch.int8, torch.bool)
    tensors = {str(t): (torch.randn(3, 4) * 3).to(t) for t in types}
    tensors["scalar"] = torch.tensor(math.nan)
    found = compare_weights(write(tmp_path / "a", **tensors), write(tmp_path / "b", **tensors), 7)
    assert (found.step, found.tensors, found.different) == (7, 6, [])


def test_different_weights_are_named_the_largest_difference_first(tmp_path: Path) -> None:
    then = {"a": torch.zeros(4), "b": torch.ones(2, 2), "c": torch.ones(3)}
    now = {
        "a": torch.tensor([0, 0, 0, -0.0]),
        "b": torch.tensor([[1, 1], [1.5, 1]]),
        "c": then["c"],
    }
    found = compare_weights(write(tmp_path / "a", **then), write(tmp_path / "b", **now), 1)
    assert [(d.name, d.largest, d.reason) for d in found.different] == [
        ("b", 0.5, "1 of 4 numbers"),
        ("a", 0.0, "1 of 4 numbers"),
    ]


def test_other_names_shapes_types_and_nan_are_differences(tmp_path: Path) -> None:
    then = {"a": torch.ones(2), "b": torch.ones(2), "d": torch.ones(2), "e": torch.ones(2)}
    now = {
        "b": torch.ones(3),
        "c": torch.ones(2),
        "d": torch.ones(2, dtype=torch.float16),
        "e": torch.tensor([1, math.nan]),
    }
    found = compare_weights(write(tmp_path / "a", **then), write(tmp_path / "b", **now), 1)
    reasons = {d.name: (d.largest, d.reason) for d in found.different}
    assert reasons["a"] == (None, "only then") and reasons["c"] == (None, "only now")
    assert reasons["b"] == (None, "(2,) torch.float32 -> (3,) torch.float32")
    assert reasons["d"][1].endswith("torch.float16")
    assert reasons["e"] == (math.inf, "1 of 2 numbers")


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    whole = write(tmp_path / "a", a=torch.ones(2))
    cut = write(tmp_path / "b", a=torch.ones(2))
    content = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(content[:-3])
    for other in (cut, tmp_path / "nowhere"):
        with pytest.raises(CheckpointError, match="cannot compare"):
            compare_weights(whole, other, 1)
