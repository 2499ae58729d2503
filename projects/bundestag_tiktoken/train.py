"""Train on German parliamentary speeches in the tokens of tiktoken."""

from __future__ import annotations

from typing import TYPE_CHECKING

from common.cli import train_main
from common.models.config import DecoderConfig
from common.training.config import ExperimentConfig

if TYPE_CHECKING:
    from common.models.base import BaseLanguageModel


class Config(ExperimentConfig):
    model: DecoderConfig = DecoderConfig()


def build_model(config: Config, vocab_size: int) -> BaseLanguageModel:
    from common.models import Decoder

    return Decoder(vocab_size, **config.model.model_dump())


if __name__ == "__main__":
    train_main(Config, build_model, __file__)
