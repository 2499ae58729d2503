"""The race to a loss: as little time as possible from the start of the process to its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from common.cli import train_main
from common.models.config import DecoderConfig
from common.training.config import ExperimentConfig

if TYPE_CHECKING:
    from common.models.base import BaseLanguageModel


class SpeedrunModelConfig(DecoderConfig):
    """A Decoder, or the neural n-gram model of model.py, which takes the sizes and `window` from here."""

    architecture: Literal["decoder", "neural_ngram"] = "decoder"
    window: int = Field(4, ge=1)  # tokens that neural_ngram sees


class Config(ExperimentConfig):
    model: SpeedrunModelConfig = SpeedrunModelConfig()


def build_model(config: Config, vocab_size: int) -> BaseLanguageModel:
    model = config.model
    if model.architecture == "neural_ngram":
        from projects.speedrun.model import NeuralNGram

        return NeuralNGram(
            vocab_size,
            window=model.window,
            hidden_size=model.hidden_size,
            intermediate_size=model.intermediate_size or 4 * model.hidden_size,
            num_layers=model.num_layers,
        )
    from common.models import Decoder

    return Decoder(vocab_size, **model.model_dump(exclude={"architecture", "window"}))


if __name__ == "__main__":
    train_main(Config, build_model, __file__)
