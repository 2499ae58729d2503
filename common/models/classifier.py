"""Adapt any module that maps inputs to class logits to the Trainer."""

from __future__ import annotations

import torch
from torch import nn

from common.models.base import BaseModel


class Classifier(BaseModel):
    """Wraps `network`, which maps (batch, ...) to logits (batch, num_classes)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.network(inputs)}
