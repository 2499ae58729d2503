"""Train a decoder with dense or sparse feed-forward layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from common.cli import train_main
from common.models.config import DecoderConfig
from common.training.config import ExperimentConfig

if TYPE_CHECKING:
    from common.training.experiment import Experiment


class Config(ExperimentConfig):
    model: DecoderConfig = DecoderConfig()


def build(config: Config) -> Experiment:
    from common.data import prepare
    from common.models import Decoder
    from common.training import text_experiment

    text = prepare(config.data)
    model = Decoder(text.vocab_size, **config.model.model_dump())
    return text_experiment(config, model, text)


if __name__ == "__main__":
    train_main(Config, build, __file__)
