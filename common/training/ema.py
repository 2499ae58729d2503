"""Exponential moving average of the weights (Polyak and Juditsky 1992)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from common.training.sharded import local


class WeightAverage:
    """`average = decay * average + (1 - decay) * weights` after every optimizer step.

    The decay at step t is at most (1 + t) / (10 + t), so that the average forgets the random
    initial weights (as in TensorFlow's ExponentialMovingAverage with `num_updates`).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        named = model.named_parameters()
        self._parameters = {name: p for name, p in named if p.requires_grad}
        self.weights = {name: p.detach().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average after `step` optimizer steps."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        averages = [local(average) for average in self.weights.values()]
        torch._foreach_lerp_(averages, self._values(), weight)

    @torch.no_grad()
    def load(self, trained: dict[str, torch.Tensor]) -> None:
        """Make the model's weights the average, and load the `trained` weights into the model.

        Without `trained` (no average so far) both are the same.
        """
        for name, parameter in self._parameters.items():
            self.weights[name].copy_(parameter)
            parameter.copy_(trained.get(name, parameter))

    @contextmanager
    @torch.no_grad()
    def applied(self) -> Iterator[None]:
        """Give the model the averaged weights inside the block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        # In place: FSDP2 gathers the weights from memory that it laid out.
        for average, value in zip(self.weights.values(), self._values(), strict=True):
            kept = value.clone()
            value.copy_(local(average))
            local(average).copy_(kept)

    def _values(self) -> list[torch.Tensor]:
        return [local(parameter.detach()) for parameter in self._parameters.values()]
