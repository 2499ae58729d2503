"""Train one family of the zoo: the same stack, text, schedule and number of parameters, other layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from common.cli import train_main
from common.errors import ConfigError
from common.models.config import DecoderConfig
from common.models.mixers.options import OPTIONS, NoOptions
from common.training.config import ExperimentConfig

if TYPE_CHECKING:
    from common.models import Decoder
    from common.training.experiment import Experiment


class ZooModel(DecoderConfig):
    """`intermediate_size` makes up for what the mixers take of `parameters`; attention gets RoPE."""

    parameters: int = Field(870_000, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _positions_for_attention(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        names = str(values.get("layers") or values.get("mixer", "attention")).split()
        attends = any(OPTIONS.get(name, NoOptions).takes_rope for name in names)
        return {"positions": "rope" if attends else "none"} | values


class Config(ExperimentConfig):
    model: ZooModel = ZooModel()
    longer: tuple[int, ...] = (1024,)  # further lengths to evaluate at: the splits val_1024, ...


def build(config: Config) -> Experiment:
    from common.data import prepare
    from common.data.loader import EvalWindows
    from common.training import text_experiment

    text = prepare(config.data)
    model = build_model(config.model, text.vocab_size, max([config.context_length, *config.longer]))
    experiment = text_experiment(config, model, text)
    for length in config.longer:
        rows = max(1, config.data.eval_batch_size * config.context_length // length)
        windows = EvalWindows(text.tokens("val"), batch_size=rows, context_length=length)
        experiment.other_val_data[f"val_{length}"] = windows
    return experiment


def build_model(config: ZooModel, vocab_size: int, longest: int) -> Decoder:
    """A Decoder of `config.parameters` for texts of up to `longest` tokens.

    The number of parameters is linear in the feed-forward width.
    """
    import torch

    from common.models import Decoder

    settings = config.model_dump(exclude={"parameters"}) | {"context_length": longest}
    with torch.device("meta"):
        one, two = (
            Decoder(vocab_size, **settings | {"intermediate_size": width}).num_parameters()
            for width in (8, 16)
        )
    width = 8 * round(1 + (config.parameters - one) / (two - one))
    if width < 8:
        raise ConfigError(
            f"model.parameters={config.parameters:,}: without feed-forward layers there are {2 * one - two:,}",
            "raise it, or lower model.hidden_size",
        )
    return Decoder(vocab_size, **settings | {"intermediate_size": width})


if __name__ == "__main__":
    train_main(Config, build, __file__)
