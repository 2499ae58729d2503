"""Our Trainer as a benchmark process (see pace.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from common.models.decoder import Decoder
from common.training.callbacks.base import Callback
from common.training.config import OptimizerConfig, ScheduleConfig, TrainingConfig
from common.training.experiment import Experiment
from common.training.trainer import Trainer
from tools.benchmarks import networks
from tools.benchmarks.nanogpt import load_into_decoder
from tools.benchmarks.networks import Network
from tools.benchmarks.pace import Pace, Steps, choose_pace, network_of, parse

UNENDING = 1_000_000  # steps; the pace stops it earlier


class Paced(Callback):
    """Follows the pace after every step."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace

    def on_step(self, trainer: Trainer) -> None:
        if not self.pace.after_step():
            trainer.should_stop = True

    def on_log(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        self.pace.record(metrics["loss"])


def main() -> None:
    arguments = parse(__doc__, weights={"type": Path, "help": "initial weights of nanoGPT"})
    pace = choose_pace(arguments)
    network = network_of(arguments)
    trainer = create_trainer(
        network,
        networks.windows(networks.open_tokens(arguments.tokens), network, arguments.accumulation),
        training_config(
            device=arguments.device,
            precision=arguments.precision,
            compile={"off": False, "false": False, "on": True}.get(arguments.compile, "auto"),
            activation_checkpointing=arguments.activation_checkpointing,
            log_every_steps=pace.log_every_steps or networks.LOG_EVERY_STEPS,
            gradient_accumulation_steps=arguments.accumulation,
        ),
        callbacks=[Paced(pace)],
    )
    if arguments.weights:
        load_into_decoder(arguments.weights, trainer.model)
    trainer.fit()
    if isinstance(pace, Steps):
        pace.finish()


def create_trainer(
    network: Network,
    data: Any,
    config: TrainingConfig,
    callbacks: Sequence[Callback] = (),
    **options: Any,
) -> Trainer:
    """A Trainer for `network`; `options` are the Trainer's own."""
    torch.manual_seed(networks.SEED)
    model = Decoder(
        network.vocab_size,
        preset="gpt2",
        bias=False,
        activation="gelu",  # exact, as nanoGPT has it
        num_layers=network.num_layers,
        num_heads=network.num_heads,
        hidden_size=network.hidden_size,
        context_length=network.context_length,
    )
    return Trainer(
        Experiment(model, data, callbacks=callbacks),
        config,
        optimizer=OptimizerConfig(
            lr=networks.LEARNING_RATE,
            betas=networks.BETAS,
            weight_decay=networks.WEIGHT_DECAY,
        ),
        schedule=ScheduleConfig(name="constant", warmup_steps=0),
        **options,
    )


def training_config(**values: Any) -> TrainingConfig:
    """Configuration of an endless training; omits `compile` if TrainingConfig has no such key."""
    known = {key: value for key, value in values.items() if key in TrainingConfig.model_fields}
    unknown = values.keys() - known.keys() - {"compile"}
    if unknown:
        raise ValueError(f"TrainingConfig has no {unknown}")
    return TrainingConfig(
        max_steps=UNENDING,
        eval_every_steps=UNENDING,
        max_grad_norm=networks.MAX_GRAD_NORM,
        **known,
    )


if __name__ == "__main__":
    main()
