"""Chen et al. 2022: the mixture of classification data (section 3), the layer (section 4) and its
training (appendix A)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

PATCHES, SIZE, CLUSTERS = 4, 50, 4
SCALE = 10.0  # of all data
LOG_EVERY_EPOCHS = 10


@dataclass(frozen=True)
class Data:
    """patches: (points, 4, 50) float32; labels and clusters: (points,) int64, of 2 and 4 values."""

    patches: torch.Tensor
    labels: torch.Tensor
    clusters: torch.Tensor


def make_data(config: Mapping[str, Any], generator: torch.Generator) -> tuple[Data, Data]:
    """(training, test), `points` each, of one set of orthonormal features v_k and centres c_k.

    A point of label y in cluster k has, in random order, the patches alpha y v_k (the feature),
    beta c_k (the centre), +-gamma v_k' of another cluster k' (a misleading feature), and noise.
    """
    square = torch.randn(SIZE, 2 * CLUSTERS, generator=generator, dtype=torch.float64)
    directions = torch.linalg.qr(square).Q.T.float()
    features, centres = directions[:CLUSTERS], directions[CLUSTERS:]
    points = 2 * config["points"]

    def uniform(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(points, 1, generator=generator)

    def integers(count: int) -> torch.Tensor:
        return torch.randint(count, (points,), generator=generator)

    labels, clusters, signs = integers(2), integers(CLUSTERS), integers(2)
    others = (clusters + 1 + integers(CLUSTERS - 1)) % CLUSTERS
    noise = torch.randn(points, SIZE, generator=generator) * config["noise"] / math.sqrt(SIZE)
    patches = [
        uniform(0.5, 2) * (2 * labels[:, None] - 1) * features[clusters],
        uniform(1, 2) * centres[clusters],
        uniform(0.5, config["gamma_max"]) * (2 * signs[:, None] - 1) * features[others],
        noise,
    ]
    order = torch.rand(points, PATCHES, generator=generator).argsort(dim=1)
    shuffled = torch.stack(patches, dim=1).gather(1, order[:, :, None].expand(-1, -1, SIZE))
    data = [shuffled * SCALE, labels, clusters]
    train, test = zip(*(tensor.chunk(2) for tensor in data), strict=True)
    return Data(*train), Data(*test)


class Mixture(nn.Module):
    """Experts sum f(<w_j, x_p> + b_j) over patches p and half of their filters j for each class.

    f is the cube (`nonlinear`) or the identity. A point is routed to the expert with the highest
    score of a linear router plus uniform noise, and the score is the gate.
    """

    def __init__(self, experts: int, filters: int, nonlinear: bool) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(SIZE, filters) for _ in range(experts))
        for parameter in self.experts.parameters():
            nn.init.uniform_(parameter, -0.001 / math.sqrt(SIZE), 0.001 / math.sqrt(SIZE))
        self.router = nn.Parameter(torch.zeros(SIZE, experts))
        self.nonlinear = nonlinear
        self._sorted = torch.empty(0)  # reused: allocation takes longer than sorting

    def forward(self, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(points, 4, 50) -> probabilities (points, 2) and the expert of each point (points,)."""
        scores = patches.sum(dim=1) @ self.router
        gates, chosen = (scores + torch.rand_like(scores)).max(dim=1)
        # Sorted by expert, so that each computes only its own points.
        order = chosen.argsort()
        counts = torch.bincount(chosen, minlength=len(self.experts)).tolist()
        if self._sorted.shape != patches.shape:
            self._sorted = torch.empty_like(patches)
        parts = torch.index_select(patches, 0, order, out=self._sorted).split(counts)
        outputs = torch.cat([self._expert(i, part) for i, part in enumerate(parts)])
        return (gates[order, None] * outputs).softmax(dim=1)[order.argsort()], chosen

    def _expert(self, index: int, patches: torch.Tensor) -> torch.Tensor:
        filtered = self.experts[index](patches)
        filtered = filtered**3 if self.nonlinear else filtered
        return filtered.sum(dim=1).unflatten(1, (2, filtered.shape[-1] // 2)).sum(dim=2)


@torch.no_grad()
def normalized_step(experts: nn.ModuleList, rate: float) -> None:
    """w -= rate * g / n for each expert, n the sum of the norms of the gradients of its parameters."""
    for expert in experts:
        gradients = [p.grad for p in expert.parameters() if p.grad is not None]
        norm = sum(gradient.norm() for gradient in gradients)
        for parameter in expert.parameters():
            if parameter.grad is not None and norm > 0:
                parameter -= rate * parameter.grad / norm


def dispatch_entropy(chosen: torch.Tensor, clusters: torch.Tensor, experts: int) -> float:
    """Conditional entropy in nats of the cluster of a point given its expert (section 5)."""
    counts = torch.bincount(chosen * CLUSTERS + clusters, minlength=experts * CLUSTERS)
    joint = counts.view(experts, CLUSTERS).double() / len(chosen)
    given = joint / joint.sum(dim=1, keepdim=True).clamp(min=1e-300)
    return float(-torch.xlogy(joint, given).sum())


def train(config: Mapping[str, Any], seed: int, log: Any) -> dict[str, float]:
    """Train on data drawn from `seed` and return test accuracy (%), dispatch entropy and epochs.

    `log(metrics, epoch)` is called every 10 epochs. The run ends when the loss is not a new minimum
    and either at most `stop_loss` or 0.02 above the minimum.
    """
    torch.manual_seed(seed)
    train_data, test_data = make_data(config, torch.Generator().manual_seed(seed))
    model = Mixture(config["experts"], config["filters"], config["expert"] == "nonlinear")
    lowest = math.inf
    for epoch in range(config["epochs"]):
        model.zero_grad()
        probabilities, chosen = model(train_data.patches)
        # As published: probabilities are used as logits, so the loss is at least 0.3133.
        objective = F.cross_entropy(probabilities, train_data.labels)
        loss = float(objective.detach())
        entropy = dispatch_entropy(chosen, train_data.clusters, config["experts"])
        if epoch % LOG_EVERY_EPOCHS == 0:
            log({"loss": loss, "dispatch_entropy": entropy}, epoch)
        if loss > lowest and (loss <= config["stop_loss"] or loss > lowest + 0.02):
            break
        lowest = min(lowest, loss)
        objective.backward()
        normalized_step(model.experts, config["expert_rate"])
        with torch.no_grad():
            model.router -= config["router_rate"] * model.router.grad
    with torch.no_grad():
        predicted = model(test_data.patches)[0].argmax(dim=1)
    accuracy = 100 * float((predicted == test_data.labels).double().mean())
    return {"test_accuracy": accuracy, "dispatch_entropy": entropy, "epochs": epoch + 1}
