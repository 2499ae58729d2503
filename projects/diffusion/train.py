"""Train a masked diffusion model on text: it fills in masked tokens, and so writes in any order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from common.cli import train_main
from common.models.config import DecoderConfig
from common.training.config import ExperimentConfig

if TYPE_CHECKING:
    from common.training.experiment import Experiment


class Config(ExperimentConfig):
    model: DecoderConfig = DecoderConfig(causal=False)
    eval_draws: int = Field(4, gt=0)  # random masks of each window in an evaluation


def build(config: Config) -> Experiment:
    from common.data import prepare
    from common.models.masked_decoder import MaskedDecoder
    from common.training import text_experiment
    from common.training.masked_diffusion import MaskedDiffusion

    text = prepare(config.data)
    model = MaskedDecoder(text.vocab_size, **config.model.model_dump())
    objective = MaskedDiffusion(
        text.vocab_size, text.tokenizer.token_bytes, seed=config.seed, draws=config.eval_draws
    )
    return text_experiment(config, model, text, objective=objective)


if __name__ == "__main__":
    train_main(Config, build, __file__)
