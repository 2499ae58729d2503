"""Learn multiplication modulo p with the shared Decoder and Trainer (Power et al. 2022; Lee et al.
2024, section 4.1)."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from common.data.batch import IGNORE_INDEX
from common.models import Decoder
from common.models.decoder import Block
from common.models.mixers.attention import Attention
from common.models.mixers.base import Positions
from common.training import Experiment, Trainer, TrainingConfig
from common.training.config import OptimizerConfig, ScheduleConfig
from common.training.precision import fastest_fp32, select_device
from common.utils.seeding import seed_everything
from papers.grokking.filters import EMAFilter, GradientFilter, MAFilter
from papers.grokking.grokked import StopWhenGrokked, train_until_grokked

if TYPE_CHECKING:
    from common.data.batch import Batch
    from common.experiments.run import Run

CHECKPOINT_EVERY_STEPS = 1000


def equations(modulus: int) -> torch.Tensor:
    """(p (p - 1), 5) int64: a * b = c for all a and all b but 0; p stands for "=", p + 1 for "*"."""
    a, b = torch.cartesian_prod(torch.arange(modulus), torch.arange(1, modulus)).T
    equals, times = torch.full_like(a, modulus), torch.full_like(a, modulus + 1)
    return torch.stack([a, times, b, equals, a * b % modulus], dim=1)


def as_batch(rows: torch.Tensor) -> Batch:
    """Predict only the answer, the last token."""
    labels = rows.clone()
    labels[:, :-1] = IGNORE_INDEX
    return {"input_ids": rows, "labels": labels}


class NormalizedBlock(Block):
    """The first norm replaces the residual stream instead of branching off it, as in the authors' code.

    So the scale of the embeddings has no effect, and decay increases their relative step size.
    """

    def forward(self, x: torch.Tensor, where: Positions, state: Any = None) -> torch.Tensor:
        """See Block.forward."""
        assert self.feedforward is not None
        x = self.mixer_norm(x)
        x = x + self.mixer(x, where, state)
        changed: torch.Tensor = x + self.feedforward(self.feedforward_norm(x), where)
        return changed


class AnswerDecoder(Decoder):
    """Computes only what the answer needs: no other predictions, nor the position of the answer."""

    def compute_loss(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self.next_logits(input_ids[:, :-1]), labels[:, -1])

    @torch.no_grad()
    def accuracy(self, rows: torch.Tensor) -> float:
        """Top-1 accuracy on the equations (count, 5)."""
        parts = rows.to(self.device).split(1024)
        right = [(self.next_logits(p[:, :-1]).argmax(dim=1) == p[:, -1]).sum() for p in parts]
        return float(sum(right)) / len(rows)


class Epochs:
    """Batches of `rows` in an order drawn for each epoch; the last of an epoch may be smaller."""

    def __init__(self, rows: torch.Tensor, batch_size: int, seed: int) -> None:
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self.per_epoch = -(-len(rows) // batch_size)
        self._order = functools.lru_cache(maxsize=2)(self._draw_order)

    def batch(self, index: int) -> Batch:
        epoch, place = divmod(index, self.per_epoch)
        chosen = self._order(epoch)[place * self.batch_size : (place + 1) * self.batch_size]
        return as_batch(self.rows[chosen])

    def _draw_order(self, epoch: int) -> torch.Tensor:
        generator = np.random.Generator(np.random.Philox(key=self.seed, counter=[0, 0, epoch, 2]))
        return torch.from_numpy(generator.permutation(len(self.rows)))


class Grokking(StopWhenGrokked):
    """Log accuracies on both splits at every logged step, since evaluations write large checkpoints here."""

    def __init__(self, model: AnswerDecoder, train: torch.Tensor, validation: torch.Tensor) -> None:
        super().__init__()
        self.model = model
        self.splits = {"train_accuracy": train, "accuracy": validation}

    def on_log(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        found = {name: self.model.accuracy(rows) for name, rows in self.splits.items()}
        if trainer.run is not None:
            trainer.run.log(found, step=trainer.step, split="val")
        self.on_evaluate(trainer, found, "val")


def make_model(config: Mapping[str, Any]) -> AnswerDecoder:
    """A GPT-2 of 2 layers with the authors' initialisation: PyTorch's defaults.

    The embeddings have a standard deviation of 1 instead of 0.02. `normalized_residual` selects the
    authors' blocks instead of pre-norm ones.
    """
    model = AnswerDecoder(
        config["modulus"] + 2,
        num_layers=2,
        hidden_size=config["width"],
        num_heads=4,
        context_length=5,
        activation="gelu",
        tie_embeddings=False,
    )
    if config["normalized_residual"]:
        model.blocks = nn.ModuleList(
            NormalizedBlock(model.config, layer) for layer in range(len(model.blocks))
        )
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            module.reset_parameters()
    for module in model.modules():
        if isinstance(module, Attention):  # as torch.nn.MultiheadAttention
            nn.init.xavier_uniform_(module.query_key_value.weight)
            nn.init.zeros_(module.query_key_value.bias)
            nn.init.zeros_(module.output.bias)
    return model


def make_filter(config: Mapping[str, Any]) -> GradientFilter:
    kinds = {"none": GradientFilter, "ema": EMAFilter, "ma": MAFilter}
    made: GradientFilter = kinds[config["filter"]](**config["filter_settings"])
    return made


def training_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the Trainer besides the experiment."""
    return {
        "config": TrainingConfig(
            max_steps=config["max_steps"],
            max_grad_norm=None,
            log_every_steps=config["measure_every_steps"],
            eval_every_steps=CHECKPOINT_EVERY_STEPS,
            keep_checkpoints=1,
            precision=fastest_fp32(select_device("auto")),
            compile=False,
        ),
        "optimizer": OptimizerConfig(
            lr=config["lr"], betas=(0.9, 0.98), weight_decay=config["adamw_decay"]
        ),
        "schedule": ScheduleConfig(name="constant", warmup_steps=10),
    }


def make_experiment(config: Mapping[str, Any], seed: int) -> Experiment:
    """All random numbers derive from `seed`: first the training split, then the weights."""
    seed_everything(seed)
    rows = equations(config["modulus"])
    train_rows, validation = rows[torch.randperm(len(rows))].tensor_split(2)
    model = make_model(config)
    return Experiment(
        model,
        Epochs(train_rows, config["batch_size"], seed),
        callbacks=[make_filter(config), Grokking(model, train_rows[::4], validation)],
    )


def train(config: Mapping[str, Any], seed: int, run: Run) -> None:
    """Train until 95% or `max_steps`; log `steps` (to 95%) as the result, if reached."""
    trainer = Trainer(make_experiment(config, seed), run=run, **training_settings(config))
    train_until_grokked(trainer, run, "steps")
