"""Train the transformer whose backward pass is written by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from common.cli import train_main
from common.models.config import ModelConfig
from common.training.config import ExperimentConfig

if TYPE_CHECKING:
    from common.models.base import BaseLanguageModel


class TransformerConfig(ModelConfig):
    num_layers: int = Field(4, gt=0)
    num_heads: int = Field(4, gt=0)
    hidden_size: int = Field(128, gt=0)


class Config(ExperimentConfig):
    model: TransformerConfig = TransformerConfig()


def build_model(config: Config, vocab_size: int) -> BaseLanguageModel:
    from projects.custom_transformer.model import CustomTransformer

    return CustomTransformer(vocab_size, **config.model.model_dump())


if __name__ == "__main__":
    train_main(Config, build_model, __file__)
