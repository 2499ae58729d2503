"""Fine-tune a model of the hub, or your own run, on another text."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pydantic import model_validator

from common.cli import train_main
from common.errors import ModelError
from common.models.config import LoRAConfig, ModelConfig
from common.models.folders import find_model_folder
from common.training.config import ExperimentConfig

if TYPE_CHECKING:
    from common.training.experiment import Experiment


class PretrainedConfig(ModelConfig):
    """The folder determines the architecture; `context_length` may be shorter than its context."""

    pretrained: str  # a folder in Hugging Face's format, or the name of one in assets/models
    lora: LoRAConfig | None = None  # train only low-rank adapters; default: all weights


class Config(ExperimentConfig):
    """Data configuration with the tokenizer of the model."""

    model: PretrainedConfig

    @model_validator(mode="before")
    @classmethod
    def _take_its_tokenizer(cls, values: dict[str, Any]) -> dict[str, Any]:
        model, data = dict(values.get("model") or {}), dict(values.get("data") or {})
        if "pretrained" not in model:
            return values
        with suppress(ModelError):  # reported by check_inputs
            # Absolute, so that it resolves from any folder, and not to a tokenizer of the same
            # name.
            model["pretrained"] = str(find_model_folder(model["pretrained"]).resolve())
        if data.setdefault("tokenizer", "pretrained") == "pretrained":
            data.setdefault("pretrained_tokenizer", model["pretrained"])
        return values | {"model": model, "data": data}

    @model_validator(mode="after")
    def _no_other_tokenizer(self) -> Config:
        if self.data.pretrained_tokenizer != self.model.pretrained:
            raise ValueError(
                "the model knows only the ids of its own tokenizer: leave out data.tokenizer and "
                "data.pretrained_tokenizer"
            )
        return self

    def check_inputs(self) -> None:
        find_model_folder(self.model.pretrained)


def build(config: Config) -> Experiment:
    import torch

    from common.data import prepare
    from common.models import add_lora, load_pretrained
    from common.training import text_experiment

    text = prepare(config.data)
    folder, length, lora = config.model.pretrained, config.model.context_length, config.model.lora
    if lora is None:
        model = load_pretrained(folder, context_length=length)
    else:
        base = "auto" if lora.base_dtype == "auto" else getattr(torch, lora.base_dtype)
        model = load_pretrained(folder, context_length=length, dtype=base)
        add_lora(model, lora.rank, lora.alpha, lora.targets, lora.dropout)
    if text.vocab_size > model.vocab_size:
        raise ModelError(
            f"the tokenizer of {config.model.pretrained} has {text.vocab_size} tokens, "
            f"the model {model.vocab_size}"
        )
    return text_experiment(config, model, text)


if __name__ == "__main__":
    train_main(Config, build, __file__)
