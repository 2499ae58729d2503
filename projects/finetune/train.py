"""Go on training a GPT-2, Llama or Qwen of the hub, or a run of your own, on another text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from common.cli import train_main
from common.models.config import ModelConfig
from common.training.config import ExperimentConfig

if TYPE_CHECKING:
    from common.models.base import BaseLanguageModel


class PretrainedConfig(ModelConfig):
    """The architecture is that of the folder; `context_length` may be shorter than its own."""

    pretrained: str  # a folder in Hugging Face's format, or OWNER/NAME of one in assets/models


class Config(ExperimentConfig):
    model: PretrainedConfig


def build_model(config: Config, vocab_size: int) -> BaseLanguageModel:
    from common.errors import ModelError
    from common.models import load_pretrained

    where = config.model.pretrained
    model = load_pretrained(where, context_length=config.model.context_length)
    if vocab_size > model.vocab_size:
        raise ModelError(
            f"the tokenizer has {vocab_size} tokens, {where} was trained with {model.vocab_size}",
            f"take its own: data.tokenizer=pretrained data.pretrained_tokenizer={where}",
        )
    return model


if __name__ == "__main__":
    train_main(Config, build_model, __file__)
