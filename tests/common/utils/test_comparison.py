"""Configuration differences, and groups of seeds found by their configuration."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import pytest

from common.errors import ExperimentError
from common.utils import save_experiment, start_experiment
from common.utils.experiment_storage.catalogue import Catalogue
from common.utils.experiment_storage.comparison import (
    GroupResult,
    compare_groups,
    config_hash,
    diff_configs,
)


def test_a_diff_names_the_keys_that_differ_or_are_missing() -> None:
    a = {"model": {"layers": 4, "heads": 2}, "seed": 0}
    b = {"model": {"layers": 6, "heads": 2}, "seed": 0, "note": None}
    assert diff_configs([a, b]) == {"model.layers": [4, 6], "note": [None, None]}
    assert diff_configs([a, a, a]) == {}
    assert diff_configs([{"x": 1}, {"x": {"y": 2}}]) == {"x": [1, None], "x.y": [None, 2]}


def manifest(**facts: Any) -> dict[str, Any]:
    return {"name": "a", "project": "p", "config": {"lr": 1, "seed": 0}} | facts


def test_only_the_seed_may_differ_within_a_group() -> None:
    same = manifest(name="b", config={"seed": 5, "lr": 1})
    assert config_hash(manifest()) == config_hash(same)
    for other in (
        {"project": "q"},
        {"config": {"lr": 2, "seed": 0}},
        {"config": {"lr": 1, "x": 0}},
    ):
        assert config_hash(manifest()) != config_hash(manifest(**other))
    assert config_hash(manifest(config={})) != config_hash(manifest(config={}, name="b"))


def store(name: str, lr: float, seed: int | None, losses: list[float]) -> None:
    frame = pd.DataFrame({"split": "val", "loss": losses, "reward": 1.0})
    metadata = {"config": {"lr": lr, "seed": seed}, "seed": seed, "project": "p"}
    save_experiment(name, frame, metadata=metadata)


def results(*names: str) -> list[GroupResult]:
    return compare_groups(Catalogue(), names)


def test_a_group_is_every_finished_run_of_its_configuration() -> None:
    for seed in range(4):
        store(f"a{seed}", 0.1, seed, [3.0, 2.0 + seed])
        store(f"b{seed}", 0.2, seed, [3.0, 1.0 + seed])
    store("diverged", 0.1, 9, [0.5, math.nan])
    store("alone", 0.3, 0, [1.0])
    live = start_experiment("live", project="p", config={"lr": 0.1, "seed": 7}, seed=7)
    live.log({"loss": 0.1}, step=0, split="val")
    first, second, third = results("a0", "b2", "alone")
    assert (first.metric, first.split, first.direction) == ("loss", "val", "min")
    assert (first.estimate.runs, first.estimate.mean) == (4, (2 + 3 + 3 + 3) / 4)
    assert first.comparison is None
    assert second.group == "b2" and second.comparison is not None
    assert second.comparison.difference == pytest.approx((1 + 2 + 3 + 3 - 2 - 3 - 3 - 3) / 4)
    assert second.comparison.bootstrap_high is not None and second.comparison.bootstrap_high <= 0
    assert third.estimate.half_width is None and third.comparison is not None
    assert third.comparison.p_value is None
    live.finish()


def test_runs_without_a_seed_of_their_own_count_and_are_not_paired() -> None:
    for number in range(3):
        store(f"a{number}", 0.1, None, [1.0 + number])
        store(f"b{number}", 0.2, 0, [2.0 + number])
    first, second = results("a0", "b0")
    assert first.estimate.runs == second.estimate.runs == 3
    assert second.comparison is not None and second.comparison.bootstrap_low is None
    assert second.comparison.p_value is not None


def test_unknown_names_and_two_seeds_of_one_configuration_are_told() -> None:
    store("a0", 0.1, 0, [1.0])
    store("a1", 0.1, 1, [1.0])
    with pytest.raises(ExperimentError, match="'a0' and 'a1' are seeds of one configuration"):
        results("a0", "a1")
    with pytest.raises(ExperimentError, match="no experiment 'a9'") as caught:
        results("a0", "a9")
    assert "a0" in caught.value.hint or "a1" in caught.value.hint
