"""Configuration differences, and groups of seeds found by their configuration."""

from __future__ import annotations

import json
import math
from typing import Any

import pandas as pd
import pytest

from common.errors import ExperimentError
from common.experiments.catalogue import Catalogue
from common.experiments.comparison import GroupComparison, compare_groups
from common.experiments.conditions import config_hash, diff_configs
from common.utils import save_experiment, start_experiment


def test_a_diff_names_the_keys_that_differ_or_are_missing() -> None:
    a = {"model": {"layers": 4, "heads": 2}, "seed": 0}
    b = {"model": {"layers": 6, "heads": 2}, "seed": 0, "note": None}
    assert diff_configs([a, b]) == {"model.layers": [4, 6], "note": [None, None]}
    assert diff_configs([a, a, a]) == {}
    assert diff_configs([{"x": 1}, {"x": {"y": 2}}]) == {"x": [1, None], "x.y": [None, 2]}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"x": True}, {"x": 1}),
        ({"x": 0.0}, {"x": False}),
        ({"x": [True]}, {"x": [1]}),
        ({"x": [{"y": 1}]}, {"x": [{"y": True}]}),
        ({"a.b": 1}, {"a": {"b": 1}}),
        ({"a": {"b.c": 1}}, {"a.b": {"c": 1}}),
        ({"x": {}}, {}),
        ({"x": {"y": {}}}, {"x": {}}),
        ({"x": None}, {}),
        ({"x": None}, {"x": {}}),
        ({"x": []}, {"x": {}}),
        ({"x": "1"}, {"x": 1}),
        ({"x": math.nan}, {"x": "nan"}),
        ({"x": [1, 2]}, {"x": [1]}),
    ],
)
def test_what_is_different_is_never_called_the_same(
    one: dict[str, object], other: dict[str, object]
) -> None:
    assert diff_configs([one, other]) and diff_configs([other, one])
    assert diff_configs([one, one, other])
    assert not diff_configs([one, json.loads(json.dumps(one))])


def test_two_nans_are_the_same_and_so_are_one_and_one_point_zero() -> None:
    one = {"x": math.nan, "y": [math.nan, {"z": math.nan}], "lr": 1}
    other = {"x": float("nan"), "y": [float("nan"), {"z": float("nan")}], "lr": 1.0}
    assert diff_configs([one, other]) == {}


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


def store(name: str, lr: float, seed: int | None, losses: list[float], **facts: Any) -> None:
    frame = pd.DataFrame({"split": "val", "loss": losses, "reward": 1.0})
    metadata = {"config": {"lr": lr, "seed": seed}, "seed": seed, "project": "p", **facts}
    save_experiment(name, frame, metadata=metadata)


def compared(*names: str) -> GroupComparison:
    return compare_groups(Catalogue(), names)


def test_a_group_is_every_finished_run_of_its_configuration() -> None:
    for seed in range(4):
        store(f"a{seed}", 0.1, seed, [3.0, 2.0 + seed])
        store(f"b{seed}", 0.2, seed, [3.0, 1.0 + seed])
    store("diverged", 0.1, 9, [0.5, math.nan])
    store("alone", 0.3, 0, [1.0])
    live = start_experiment("live", project="p", config={"lr": 0.1, "seed": 7}, seed=7)
    live.log({"loss": 0.1}, step=0, split="val")
    found = compared("a0", "b2", "alone")
    first, second, third = found.results
    assert (first.metric, first.split, first.direction) == ("loss", "val", "min")
    assert (first.estimate.seeds, first.estimate.mean) == (4, (2 + 3 + 3 + 3) / 4)
    assert first.comparison is None and first.verdict is None
    assert second.group == "b2" and second.comparison is not None
    assert second.comparison.difference == pytest.approx((1 + 2 + 3 + 3 - 2 - 3 - 3 - 3) / 4)
    assert second.comparison.test == "paired t" and second.verdict == "not told apart"
    assert third.estimate.half_width is None and third.comparison is not None
    assert third.comparison.p_value is None and third.verdict == "too few seeds"
    assert found.notes == [
        "left out live: it is running",
        "left out of the metrics that diverged: diverged",
        "unknown whether higher is better: reward",
    ]
    live.finish()


def test_the_runs_of_a_seed_count_once() -> None:
    for seed, (a, b) in enumerate([(2.0, 2.5), (2.1, 2.3)]):
        for again in range(5):
            store(f"a{seed}_{again}", 0.1, seed, [a])
            store(f"b{seed}_{again}", 0.2, seed, [b])
    found = compared("a0_0", "b0_0")
    first, second = found.results
    assert first.estimate.seeds == second.estimate.seeds == 2
    assert second.comparison is not None and second.comparison.seeds == 2
    # Of two pairs: t = mean / (deviation / sqrt(2)) has the distribution of Cauchy.
    expected = 1 - 2 / math.pi * math.atan(0.35 / 0.15)
    assert second.comparison.p_value == pytest.approx(expected)
    assert second.verdict == "not told apart"
    assert "a0_0: 10 runs of 2 seeds; the runs of a seed count once" in found.notes


def test_repeated_runs_of_a_seed_count_with_their_mean() -> None:
    for number, (seed, loss) in enumerate([(0, 1.0), (0, 2.0), (1, 4.0)]):
        store(f"a{number}", 0.1, seed, [loss])
    assert compared("a0").results[0].estimate.mean == (1.5 + 4.0) / 2


def test_the_seed_of_the_configuration_counts_where_the_manifest_has_none() -> None:
    for number in range(3):
        metadata = {"config": {"lr": 0.1, "seed": number % 2}, "project": "p"}
        save_experiment(f"a{number}", pd.DataFrame({"loss": [1.0 + number]}), metadata=metadata)
    assert compared("a0").results[0].estimate.seeds == 2


def test_seeds_without_effect_are_not_taken_for_evidence() -> None:
    for seed in range(3):
        store(f"a{seed}", 0.1, seed, [1.0])
        store(f"b{seed}", 0.2, seed, [2.0])
    assert [result.verdict for result in compared("a0", "b0").results] == [None, "no spread"]


def test_runs_without_a_seed_of_their_own_count_and_are_not_paired() -> None:
    for number in range(3):
        store(f"a{number}", 0.1, None, [1.0 + number])
        store(f"b{number}", 0.2, number, [2.0 + number])
    found = compared("a0", "b0")
    first, second = found.results
    assert first.estimate.seeds == second.estimate.seeds == 3
    assert second.comparison is not None and second.comparison.test == "Welch"
    assert "no seed is recorded for a0, a1, a2: each counts as a separate one" in found.notes


def test_a_run_that_a_resume_has_changed_is_of_no_group() -> None:
    for seed in range(3):
        store(f"a{seed}", 0.1, seed, [2.0 + seed])
    starts = [
        {"step": 0, "changes": {}},
        {"step": 50, "changes": {"lr": [0.4, 0.1]}},
    ]
    store("changed", 0.1, 3, [0.0], starts=starts)
    store("resumed", 0.1, 4, [3.0], starts=[{"step": 0, "changes": {}}, {"step": 9, "changes": {}}])
    found = compared("a0")
    assert (found.results[0].estimate.seeds, found.results[0].estimate.mean) == (4, 3.0)
    assert "changed is in no group: a resume changed lr 0.4 -> 0.1 at step 50" in found.notes
    assert compared("changed").results[0].estimate.seeds == 1
    with_both = compared("a0", "changed").results[1]
    assert with_both.group == "changed" and with_both.verdict == "too few seeds"


def test_runs_on_other_terms_are_named() -> None:
    for seed in range(3):
        store(f"a{seed}", 0.1, seed, [2.0 + seed], precision="bf32", threads=2, compiled=True)
        store(f"b{seed}", 0.2, seed, [1.0 + seed], precision="fp32", threads=2)
    assert compared("a0", "b0").notes[:2] == [
        "precision differs: bf32 (a0, a1, a2), fp32 (b0, b1, b2)",
        "compiled differs: True (a0, a1, a2), not recorded (b0, b1, b2)",
    ]
    store("a3", 0.1, 3, [2.0], precision="fp32", threads=2, compiled=True)
    assert compared("a0").notes[0] == "precision differs: bf32 (a0, a1, a2), fp32 (a3)"


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"tokenizer": "y", "data_fingerprint": {"val": "2"}}, "another tokenizer"),
        ({"tokenizer": "x", "data_fingerprint": {"val": "2"}}, "other data"),
        ({"tokenizer": "x", "data_fingerprint": {"train": "2", "val": "1"}}, None),
        ({}, None),  # of an earlier version
    ],
)
def test_losses_of_other_tokens_are_not_compared(facts: dict[str, Any], reason: str | None) -> None:
    tokens = {"tokenizer": "x", "data_fingerprint": {"train": "1", "val": "1"}}
    for seed in range(3):
        store(f"a{seed}", 0.1, seed, [2.0 + seed], **tokens)
        store(f"b{seed}", 0.2, seed, [1.0 + seed**2], **facts)
    verdicts = {r.metric: r.verdict for r in compared("a0", "b0").results if r.group == "b0"}
    expected = f"not compared: {reason}" if reason else "not told apart"
    assert verdicts == {"loss": expected}
    # Of one configuration, they are no seeds of each other either.
    store("a9", 0.1, 9, [9.0], **facts)
    mixed = compared("a0")
    left_out = f"left out a9: {reason or 'other data'} than a0"
    same = not facts
    assert (left_out not in mixed.notes) == same
    assert mixed.results[0].estimate.seeds == (4 if same else 3)


def store_both(name: str, lr: float, seed: int, quick: float, full: float, batches: str) -> None:
    """As a Trainer with training.eval_batches logs them; `batches` is the fingerprint of the few."""
    frame = pd.DataFrame({"split": ["val_quick", "val"], "loss": [quick, full]})
    config = {"optimizer": {"lr": lr}, "training": {"eval_batches": 2}, "seed": seed}
    prints = {"val": "1"} | ({"val_quick": batches} if batches else {})
    facts = {"config": config, "seed": seed, "project": "p", "data_fingerprint": prints}
    save_experiment(name, frame, metadata=facts)


@pytest.mark.parametrize("batches", ["same", "other"])
def test_groups_compare_few_batches_with_the_same_few_and_whole_splits_apart(batches: str) -> None:
    for seed in range(3):
        store_both(
            f"a{seed}", 0.1, seed, quick=1.0 + 0.01 * seed, full=3.0 + 0.01 * seed, batches="same"
        )
        store_both(
            f"b{seed}", 0.2, seed, quick=2.0 + 0.03 * seed, full=2.0 + 0.03 * seed, batches=batches
        )
    found = {(r.split, r.group): r for r in compared("a0", "b0").results}
    assert found["val", "a0"].estimate.mean == pytest.approx(3.01)
    assert found["val_quick", "a0"].estimate.mean == pytest.approx(1.01)
    assert found["val", "b0"].verdict == "better"
    expected = "worse" if batches == "same" else "not compared: other batches"
    assert found["val_quick", "b0"].verdict == expected


def test_val_of_an_earlier_version_with_few_batches_in_it_is_compared_with_its_like() -> None:
    for seed in range(3):
        store_both(f"old{seed}", 0.1, seed, quick=1.0 + seed, full=1.0 + 0.1 * seed, batches="")
        store_both(f"new{seed}", 0.2, seed, quick=1.0 + seed, full=2.0 + 0.1 * seed, batches="x")
        store_both(f"like{seed}", 0.3, seed, quick=1.0 + seed, full=1.0 + 0.3 * seed, batches="")
    store_both("new9", 0.1, 9, quick=1.0, full=9.0, batches="x")
    compared_with_old = compared("old0", "new0", "like0")
    found = {(r.split, r.group): r.verdict for r in compared_with_old.results}
    reason = "an earlier version logged losses of few batches as val"
    assert found["val", "new0"] == f"not compared: {reason}"
    assert found["val", "like0"] == "not told apart"
    left_out = "left out new9: only one of it and old0 has losses of few batches as val"
    assert left_out in compared_with_old.notes


def test_bits_per_byte_are_compared_whatever_the_tokenizer() -> None:
    for name, tokenizer in (("a", "x"), ("b", "y")):
        for seed in range(3):
            noise = 0.001 * seed * (1 if name == "a" else 2)
            frame = pd.DataFrame(
                {"split": "val", "bits_per_byte": [len(tokenizer) + (name == "b") + noise]}
            )
            frame["perplexity"] = frame["bits_per_byte"]
            metadata = {"config": {"x": name}, "seed": seed, "tokenizer": tokenizer}
            save_experiment(f"{name}{seed}", frame, metadata=metadata)
    verdicts = {r.metric: r.verdict for r in compared("a0", "b0").results if r.group == "b0"}
    assert verdicts == {"bits_per_byte": "worse", "perplexity": "not compared: another tokenizer"}


def test_unknown_names_and_two_seeds_of_one_configuration_are_told() -> None:
    store("a0", 0.1, 0, [1.0])
    store("a1", 0.1, 1, [1.0])
    with pytest.raises(ExperimentError, match="'a0' and 'a1' are seeds of one configuration"):
        compared("a0", "a1")
    with pytest.raises(ExperimentError, match="no experiment 'a9'") as caught:
        compared("a0", "a9")
    assert "a0" in caught.value.hint or "a1" in caught.value.hint
