"""Addition modulo p learnt by an MLP on the full batch (Prieto et al. 2025, sections 2 and 5)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from papers.grokking import GROKKED
from papers.grokking.filters import project_orthogonally

MEASURE_EVERY_EPOCHS = 5


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


def train(config: Mapping[str, Any], seed: int, log: Any) -> dict[str, float]:
    """Train until 95% validation accuracy or `max_epochs`; `epochs` is given where it got there.

    `log(metrics, epoch, split)` is called every 5 epochs.
    """
    torch.manual_seed(seed)
    inputs, targets = sums(config["modulus"])
    order = torch.randperm(len(inputs))
    chosen, others = order.tensor_split([int(config["train_fraction"] * len(inputs))])
    x, y, x_val, y_val = inputs[chosen], targets[chosen], inputs[others], targets[others]
    model = make_model(config["modulus"], config["width"])
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=config["lr"],
        betas=(0.9, config["beta2"]),
        eps=config["eps"],  # so small that tiny gradients still move the weights
        weight_decay=config["weight_decay"],
    )
    for epoch in range(1, config["max_epochs"] + 1):
        optimizer.zero_grad()
        logits = model(x)
        loss = F.cross_entropy(logits, y)
        loss.backward()
        if config["orthogonal"]:
            project_orthogonally(model.parameters())
        optimizer.step()
        if epoch % MEASURE_EVERY_EPOCHS == 0:
            fitted = float((logits.detach().argmax(dim=1) == y).float().mean())
            with torch.no_grad():
                accuracy = float((model(x_val).argmax(dim=1) == y_val).float().mean())
            found = {"loss": loss.item(), "train_accuracy": fitted, "accuracy": accuracy}
            log(found, epoch, "val")
            if accuracy >= GROKKED:
                return {"trained_epochs": epoch, "epochs": epoch}
    return {"trained_epochs": config["max_epochs"]}
