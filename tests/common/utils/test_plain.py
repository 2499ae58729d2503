"""Values of other libraries, and text, on their way into the store."""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from common.errors import ExperimentError
from common.experiments.catalogue import Catalogue
from common.experiments.names import exists
from common.experiments.sql import query_rows
from common.utils import save_experiment, start_experiment
from common.utils.plain import to_plain

MOMENT = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)


class Colour(enum.Enum):
    RED = "red"


PLAIN: list[tuple[Any, Any]] = [
    (np.float32(0.1), float(np.float32(0.1))),
    (np.float64(0.1), 0.1),
    (np.int64(7), 7),
    (np.uint64(2**64 - 1), 2**64 - 1),
    (np.bool_(True), True),
    (np.arange(3), [0, 1, 2]),
    (np.datetime64("2024-05-06"), "2024-05-06"),
    (torch.tensor(2.5), 2.5),
    (torch.tensor([1, 2]), [1, 2]),
    (torch.Size([3, 4]), [3, 4]),
    (Path("data/x.txt"), "data/x.txt"),
    (MOMENT, "2024-05-06T07:08:09+00:00"),
    (date(2024, 5, 6), "2024-05-06"),
    (timedelta(minutes=1), 60.0),
    (Colour.RED, "red"),
    ((1, 2), [1, 2]),
    ({3, 1}, [1, 3]),
    ({np.int64(3): {"a": np.float16(0.5)}}, {"3": {"a": 0.5}}),
    (np.float32(-np.inf), -math.inf),
]
NOT_PLAIN: list[Any] = [object(), 1j, b"x", len, {"deep": [object()]}, {(1, 2): 3}]


@pytest.mark.parametrize(("value", "plain"), PLAIN)
def test_plain_values_of_other_libraries_become_json(value: Any, plain: Any) -> None:
    found = to_plain(value)
    assert found == plain and type(found) is type(plain)
    assert json.loads(json.dumps(found)) == plain


def start(facts: dict[str, Any]) -> None:
    start_experiment("exp", **facts).finish()


def save(facts: dict[str, Any]) -> None:
    save_experiment("exp", pd.DataFrame({"loss": [1.0]}), metadata=facts)


def update(facts: dict[str, Any]) -> None:
    with start_experiment("exp") as run:
        run.update(**facts)


WAYS = pytest.mark.parametrize("way", [start, save, update])


@WAYS
def test_every_way_into_the_store_takes_plain_values(way: Callable[[dict[str, Any]], None]) -> None:
    config = {str(index): value for index, (value, _) in enumerate(PLAIN)}
    way({"config": config, "seed": np.int64(3), "tags": ("a", "b")})
    expected = {str(index): plain for index, (_, plain) in enumerate(PLAIN)}
    manifest = Catalogue().manifest("exp")
    assert (manifest["config"], manifest["seed"], manifest["tags"]) == (expected, 3, ["a", "b"])
    ((text, seed),) = query_rows("SELECT config::VARCHAR, seed FROM runs")[1]
    assert (json.loads(text), seed) == (expected, 3)


@pytest.mark.parametrize("value", NOT_PLAIN, ids=range(len(NOT_PLAIN)))
@pytest.mark.parametrize("way", [start, save])
def test_what_is_not_plain_is_refused_before_the_name_is_taken(
    way: Callable[[dict[str, Any]], None], value: Any
) -> None:
    with pytest.raises(ExperimentError, match=r"'config'.*lr"):
        way({"config": {"lr": value}})
    assert not exists("exp")
    way({"config": {"lr": 0.1}})


def test_a_configuration_that_holds_itself_is_refused() -> None:
    config: dict[str, Any] = {}
    config["config"] = config
    with pytest.raises(ExperimentError, match="contains itself"):
        start_experiment("exp", config=config)


NO_TEXT = ["caf\udce9", "\ud800", "a\0b"]
SHOWN: list[Callable[[str], dict[str, Any]]] = [
    lambda text: {"project": text},
    lambda text: {"tags": ["good", text]},
]


@WAYS
@pytest.mark.parametrize("text", NO_TEXT, ids=ascii)
@pytest.mark.parametrize("facts", SHOWN)
def test_what_is_no_text_never_enters_the_store(
    way: Callable[[dict[str, Any]], None], text: str, facts: Callable[[str], dict[str, Any]]
) -> None:
    with pytest.raises(ExperimentError, match="not text"):
        way(facts(text))
    assert Catalogue().broken == [] and query_rows("SELECT count(*) FROM runs")[0]
    start_experiment("next").finish()


@pytest.mark.parametrize("text", NO_TEXT, ids=ascii)
def test_a_run_that_an_earlier_version_gave_such_text_is_listed(text: str) -> None:
    """Its project and tags are shown spelt out: with the run left out, nobody could mend it."""
    from common.experiments.parquet import write_parquet
    from common.utils.manifest import create_manifest

    manifest = create_manifest("old", project=text, config={}, seed=1, tags=[text])
    row = {"step": 1, "split": "val", "epoch": None, "time": 1.0, "metrics": {"loss": 2.0}}
    write_parquet(manifest | {"status": "finished", "note": text}, [row])
    ((name, project, tags, note),) = query_rows("SELECT name, project, tags, note FROM runs")[1]
    assert (
        name == "old"
        and project == note == tags[0]
        and project.startswith(text[:1].strip("\ud800"))
    )
    assert [run.name for run in Catalogue().overview()] == ["old"]
    assert Catalogue().best("loss")[0][1].name == "old"
