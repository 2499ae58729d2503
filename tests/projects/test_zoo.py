"""The zoo compares mixers and nothing else: equal parameters, text and schedule."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from common.config import load_config
from common.models import Decoder
from common.models.registry import MIXERS
from projects.zoo.train import Config

CONFIGS = Path(__file__).parents[2] / "projects" / "zoo" / "configs"


def test_every_mixer_has_a_configuration() -> None:
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == MIXERS.keys()


@pytest.mark.parametrize("name", MIXERS)
def test_only_the_layers_differ(name: str) -> None:
    first = load_config(CONFIGS / "attention.yaml", Config)
    config = load_config(CONFIGS / f"{name}.yaml", Config)
    assert config.model.mixers == [name] * 4
    own = {"mixer", "positions", "intermediate_size", "options"}
    for mine, theirs in ((config.model.model_dump(), first.model.model_dump()),):
        assert {k: v for k, v in mine.items() if k not in own} == {
            k: v for k, v in theirs.items() if k not in own
        }
    assert config.model_copy(update={"model": first.model}) == first
    with torch.device("meta"):
        models = [Decoder(512, **each.model.model_dump()) for each in (config, first)]
    sizes = [model.num_parameters() for model in models]
    assert abs(sizes[0] / sizes[1] - 1) < 0.01
