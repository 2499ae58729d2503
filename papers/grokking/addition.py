"""Learn addition modulo p with an MLP on the full batch (Prieto et al. 2025, sections 2 and 5)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from common.models import Classifier
from common.training import Classification, Experiment, Trainer, TrainingConfig
from common.training.config import OptimizerConfig, ScheduleConfig
from papers.grokking.filters import GradientFilter, OrthogonalFilter
from papers.grokking.grokked import StopWhenGrokked, train_until_grokked

if TYPE_CHECKING:
    from common.experiments.run import Run

MEASURE_EVERY_EPOCHS = 5  # an epoch is a step


def sums(modulus: int) -> tuple[torch.Tensor, torch.Tensor]:
    """All a + b: (p * p, 2 p) float32, a and b as one-hot codes beside each other, and (p * p,) int64."""
    pairs = torch.cartesian_prod(torch.arange(modulus), torch.arange(modulus))
    return F.one_hot(pairs, modulus).flatten(1).float(), pairs.sum(dim=1) % modulus


def make_model(modulus: int, width: int) -> nn.Sequential:
    """2 p -> width -> width -> p with ReLU, without biases."""
    sizes = [2 * modulus, width, width, modulus]
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs, bias=False), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def make_experiment(config: Mapping[str, Any], seed: int) -> Experiment:
    """All random numbers derive from `seed`: first the training split, then the weights."""
    torch.manual_seed(seed)
    inputs, targets = sums(config["modulus"])
    order = torch.randperm(len(inputs))
    chosen, others = order.tensor_split([int(config["train_fraction"] * len(inputs))])
    return Experiment(
        Classifier(make_model(config["modulus"], config["width"])),
        [(inputs[chosen], targets[chosen])],
        [(inputs[others], targets[others])],
        Classification(config["modulus"], "sums"),
        callbacks=[
            OrthogonalFilter() if config["orthogonal"] else GradientFilter(),
            StopWhenGrokked(),
        ],
    )


def training_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the Trainer besides the experiment."""
    return {
        "config": TrainingConfig(
            max_steps=config["max_epochs"],
            max_grad_norm=None,
            log_every_steps=MEASURE_EVERY_EPOCHS,
            eval_every_steps=MEASURE_EVERY_EPOCHS,
            keep_checkpoints=1,
            precision="fp32",
            compile=False,
        ),
        "optimizer": OptimizerConfig(
            lr=config["lr"],
            betas=(0.9, config["beta2"]),
            eps=config["eps"],  # so small that tiny gradients still move the weights
            weight_decay=config["weight_decay"],
        ),
        "schedule": ScheduleConfig(name="constant", warmup_steps=0),
    }


def train(config: Mapping[str, Any], seed: int, run: Run) -> None:
    """Train until 95% or `max_epochs`; log `epochs` (to 95%) as the result, if reached."""
    trainer = Trainer(make_experiment(config, seed), run=run, **training_settings(config))
    train_until_grokked(trainer, run, "epochs")
