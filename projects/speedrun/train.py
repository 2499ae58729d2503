"""A speedrun to a target loss, timed from start to end of the process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from common.cli import train_main
from common.models.config import DecoderConfig
from common.training.config import ExperimentConfig

if TYPE_CHECKING:
    from common.models.base import BaseLanguageModel
    from common.training.experiment import Experiment


class SpeedrunModelConfig(DecoderConfig):
    """A Decoder, or the neural n-gram model of model.py with these sizes and `window`."""

    architecture: Literal["decoder", "neural_ngram"] = "decoder"
    window: int = Field(4, ge=1)  # tokens that neural_ngram sees


class Config(ExperimentConfig):
    model: SpeedrunModelConfig = SpeedrunModelConfig()


def build(config: Config) -> Experiment:
    from common.data import prepare
    from common.training import text_experiment

    text = prepare(config.data)
    return text_experiment(config, create_model(config.model, text.vocab_size), text)


def create_model(config: SpeedrunModelConfig, vocab_size: int) -> BaseLanguageModel:
    if config.architecture == "neural_ngram":
        from projects.speedrun.model import NeuralNGram

        return NeuralNGram(
            vocab_size,
            window=config.window,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size or 4 * config.hidden_size,
            num_layers=config.num_layers,
        )
    from common.models import Decoder

    return Decoder(vocab_size, **config.model_dump(exclude={"architecture", "window"}))


if __name__ == "__main__":
    train_main(Config, build, __file__)
