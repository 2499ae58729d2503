"""Where tags go: the rule for splits, and that no two tags are ever mixed up."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.importing.tags import (
    Place,
    Point,
    distinct_names,
    place_tags,
    rows_of_points,
)
from common.experiments.rows import check_metrics

AWKWARD = ["loss", "Loss", "LOSS", "step", "Split", "time", "epoch", "", "/", "train", "train/"]
AWKWARD += ["val/loss", "eval/loss", "dev/Loss", "loss/val", "val_loss", "train/train/loss", "x_2"]
AWKWARD += ["X", "x", "train/x", "logged_time", "val/time", "TIME", "\ud800", "a/b/test", "val/"]


@pytest.mark.parametrize(
    ("tag", "split", "metric"),
    [
        ("train/loss", "train", "loss"),
        ("val/loss", "val", "loss"),
        ("eval/loss", "val", "loss"),
        ("Validation/acc/top1", "val", "acc/top1"),
        ("loss/train", "train", "loss"),
        ("acc/top1/test", "test", "acc/top1"),
        ("val_loss", "val", "loss"),
        ("val_quick/loss", "val_quick", "loss"),
        ("loss/val_quick", "val_quick", "loss"),
        ("loss", "train", "loss"),
        ("grad/norm", "train", "grad/norm"),
        ("trainable", "train", "trainable"),
        ("val/", "train", "val/"),
        ("", "train", "unnamed"),
    ],
)
def test_a_split_is_found_at_either_end_of_a_tag(tag: str, split: str, metric: str) -> None:
    places, _ = place_tags([tag])
    assert places == {tag: Place(split, metric)}


def test_names_that_our_store_refuses_are_changed_with_a_warning() -> None:
    places, warnings = place_tags(["val/time", "Loss", "loss", "step"])
    assert places["val/time"] == Place("val", "logged_time")
    assert places["step"] == Place("train", "logged_step")
    assert {places["Loss"].metric, places["loss"].metric} == {"Loss", "loss_2"}
    assert "'val/time' is 'logged_time' on val" in warnings[0]


def test_two_words_for_one_split_stay_apart() -> None:
    places, _ = place_tags(["val/loss", "eval/loss"])
    assert places == {"eval/loss": Place("val", "loss"), "val/loss": Place("val", "loss_2")}


def test_one_spelling_serves_all_splits() -> None:
    places, warnings = place_tags(["train/Loss", "val/loss"])
    assert {place.metric for place in places.values()} == {"Loss"}
    assert "'val/loss'" in warnings[0]


@given(st.lists(st.sampled_from(AWKWARD) | st.text(max_size=6), unique=True), st.randoms())
def test_no_two_tags_share_a_place_whatever_their_order(
    tags: list[str], shuffler: random.Random
) -> None:
    places, _ = place_tags(tags)
    kept = [place for place in places.values() if place.metric != "epoch"]
    assert len(kept) == len(set(kept))
    known: dict[str, str] = {}
    for place in kept:
        check_metrics({place.metric: 1.0}, known)  # raises for what the store would refuse
        place.metric.encode()
    shuffled = list(tags)
    shuffler.shuffle(shuffled)
    assert place_tags(shuffled)[0] == places


@given(st.lists(st.sampled_from(AWKWARD) | st.text(max_size=6), unique=True))
def test_columns_keep_their_names_where_they_can(names: list[str]) -> None:
    metrics, _ = distinct_names(names)
    check_metrics(dict.fromkeys(metrics.values(), 1.0), {})
    assert len({metric.lower() for metric in metrics.values()}) == len(names)


def test_points_of_one_step_and_split_share_a_row_and_none_is_lost() -> None:
    points = [
        Point("train/loss", 1, 2.0, 0.5),
        Point("train/acc", 1, 2.5, 0.25),
        Point("val/loss", 1, 3.0, 0.75),
        Point("train/loss", 0, 1.0, 1.0),
        Point("train/loss", 1, 9.0, 0.125),
        Point("epoch", 1, 2.0, 0.1),
        Point("epoch", 7, 2.0, 3.0),
    ]
    rows, warnings = rows_of_points(points)
    assert not warnings
    assert [(r["step"], r["split"], r["epoch"], r["time"], r["metrics"]) for r in rows] == [
        (0, "train", None, 1.0, {"loss": 1.0}),
        (1, "train", 0.1, 2.0, {"loss": 0.5, "acc": 0.25}),
        (1, "val", 0.1, 3.0, {"loss": 0.75}),
        (1, "train", 0.1, 9.0, {"loss": 0.125}),
        (7, "train", 3.0, None, {}),
    ]
