"""Losses over 100 steps beside a stored curve: whatever changes the numerics has to say so.

The curve comes from float64 and PyTorch's own functions and optimizer; of ours it takes the batches and
the learning rates only. `python tests/common/training/test_loss_curve.py` computes it again.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from common.data.loader import RandomWindows
from common.experiments.log import read_log
from common.experiments.run import start_experiment
from common.experiments.store import log_path
from common.models import Decoder
from common.training.config import OptimizerConfig, ScheduleConfig, TrainingConfig
from common.training.schedules import learning_rate_factor
from tests.trainers import make_trainer

CURVE = Path(__file__).with_name("loss_curve.json")
WORDS, WIDTH, LAYERS, HEADS, TIME, STEPS = 40, 32, 2, 4, 24, 100
OPTIMIZER = OptimizerConfig(lr=3e-3, weight_decay=0.1, betas=(0.9, 0.95))
SCHEDULE = ScheduleConfig(warmup_steps=10)
Weights = dict[str, torch.Tensor]


def batches() -> RandomWindows:
    steps = np.random.default_rng(0).integers(1, 4, 3000)
    tokens = (np.cumsum(steps) % WORDS).astype(np.uint16)
    return RandomWindows(tokens, batch_size=6, context_length=TIME, seed=7)


def new_decoder() -> Decoder:
    """Its weights are drawn by NumPy: the same on every machine and with every version of PyTorch."""
    decoder = Decoder(
        WORDS, hidden_size=WIDTH, num_layers=LAYERS, num_heads=HEADS, context_length=TIME
    )
    draw = np.random.default_rng(1)
    for name, parameter in decoder.named_parameters():
        mean = 1.0 if name.endswith("norm.weight") else 0.0
        noise = torch.from_numpy(draw.normal(mean, 0.05, tuple(parameter.shape)))
        parameter.data.copy_(noise)
    return decoder


def reference_loss(w: Weights, ids: torch.Tensor) -> torch.Tensor:
    """GPT-2 (Radford et al. 2019, section 2.3) as its paper describes it; ids: (batch, time) int64."""

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, [WIDTH], w[f"{name}.weight"], w[f"{name}.bias"])

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    x = w["token_embedding.weight"][ids] + w["position_embedding.weight"][: ids.shape[1]]
    for layer in range(LAYERS):
        block = f"blocks.{layer}"
        heads = linear(norm(x, f"{block}.mixer_norm"), f"{block}.mixer.query_key_value")
        q, k, v = (y.unflatten(2, (HEADS, -1)).transpose(1, 2) for y in heads.chunk(3, dim=2))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + linear(mixed.transpose(1, 2).flatten(2), f"{block}.mixer.output")
        hidden = linear(norm(x, f"{block}.feedforward_norm"), f"{block}.feedforward.input")
        x = x + linear(F.gelu(hidden, approximate="tanh"), f"{block}.feedforward.output")
    logits = norm(x, "final_norm") @ w["token_embedding.weight"].T
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def reference_curve() -> list[float]:
    weights = {n: p.detach().double().requires_grad_() for n, p in new_decoder().named_parameters()}
    decayed = [w for w in weights.values() if w.dim() > 1]
    others = [w for w in weights.values() if w.dim() == 1]
    groups = [
        {"params": decayed, "weight_decay": OPTIMIZER.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=OPTIMIZER.lr, betas=OPTIMIZER.betas)
    source, losses = batches(), []
    for step in range(STEPS):
        loss = reference_loss(weights, source.batch(step)["input_ids"])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = OPTIMIZER.lr * learning_rate_factor(step, STEPS, SCHEDULE)
        optimizer.step()
        losses.append(loss.item())
    return losses


def our_curve(precision: str, compile: bool) -> list[float]:
    with start_experiment("curve", config={}) as run:
        trainer = make_trainer(
            new_decoder(),
            batches(),
            TrainingConfig.model_validate(
                {"max_steps": STEPS, "log_every_steps": 1, "device": "cpu"}
                | {"precision": precision, "compile": compile}
            ),
            optimizer=OPTIMIZER,
            schedule=SCHEDULE,
            run=run,
        )
        trainer.fit()
        return [row["metrics"]["loss"] for row in read_log(log_path("curve")).iter_rows()]


@pytest.mark.parametrize(("precision", "error"), [("fp32", 1e-4), ("bf32", 1e-2), ("bf16", 5e-2)])
def test_losses_over_100_steps_follow_the_stored_curve(precision: str, error: float) -> None:
    stored = json.loads(CURVE.read_text())
    assert stored[0] > 3.6 and stored[-1] < 1.6  # it learns; the entropy of the text is log 3
    ours = our_curve(precision, compile=False)
    assert len(ours) == STEPS and np.abs(np.subtract(ours, stored)).max() < error, np.abs(
        np.subtract(ours, stored)
    ).max()


def test_the_stored_curve_is_that_of_the_reference() -> None:
    assert np.abs(np.subtract(reference_curve(), json.loads(CURVE.read_text()))).max() < 1e-9


if __name__ == "__main__":
    CURVE.write_text(json.dumps([round(loss, 12) for loss in reference_curve()]) + "\n")
