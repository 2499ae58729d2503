"""Train a masked diffusion model on text, which writes in any order, or the same model on the next token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from common.cli import train_main
from common.models.config import DecoderConfig
from common.training.config import ExperimentConfig

if TYPE_CHECKING:
    from common.training.experiment import Experiment


class Config(ExperimentConfig):
    model: DecoderConfig = DecoderConfig(causal=False)
    objective: Literal["masked_diffusion", "next_token"] = "masked_diffusion"
    weight_power: float = Field(0.5, ge=0, le=1)  # of rows in training: 0 equal tokens, 1 the bound
    eval_draws: int = Field(4, gt=0)  # random masks of each window in an evaluation

    @model_validator(mode="before")
    @classmethod
    def _causal_by_objective(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(values.get("model", {}), dict):
            return values
        causal = values.get("objective") == "next_token"
        return {**values, "model": {"causal": causal, **values.get("model", {})}}

    @model_validator(mode="after")
    def _causal_fits(self) -> Config:
        if self.model.causal != (self.objective == "next_token"):
            raise ValueError(
                f"model.causal={str(self.model.causal).lower()} does not fit objective={self.objective}: "
                "leave it out"
            )
        return self


def build(config: Config) -> Experiment:
    from common.data import prepare
    from common.models import Decoder
    from common.models.masked_decoder import MaskedDecoder
    from common.training import text_experiment
    from common.training.masked_diffusion import MaskedDiffusion

    text = prepare(config.data)
    if config.objective == "next_token":
        return text_experiment(config, Decoder(text.vocab_size, **config.model.model_dump()), text)
    model = MaskedDecoder(text.vocab_size, **config.model.model_dump())
    objective = MaskedDiffusion(
        text.vocab_size,
        text.tokenizer.token_bytes,
        seed=config.seed,
        draws=config.eval_draws,
        weight_power=config.weight_power,
    )
    return text_experiment(config, model, text, objective=objective)


if __name__ == "__main__":
    train_main(Config, build, __file__)
