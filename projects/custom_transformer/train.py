"""Train the transformer with a hand-written backward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from common.cli import train_main
from common.models.config import ModelConfig
from common.training.config import ExperimentConfig

if TYPE_CHECKING:
    from common.training.experiment import Experiment


class TransformerConfig(ModelConfig):
    num_layers: int = Field(4, gt=0)
    num_heads: int = Field(4, gt=0)
    hidden_size: int = Field(128, gt=0)


class Config(ExperimentConfig):
    model: TransformerConfig = TransformerConfig()


def build(config: Config) -> Experiment:
    from common.data import prepare
    from common.training import text_experiment
    from projects.custom_transformer.model import CustomTransformer

    text = prepare(config.data)
    model = CustomTransformer(text.vocab_size, **config.model.model_dump())
    return text_experiment(config, model, text)


if __name__ == "__main__":
    train_main(Config, build, __file__)
