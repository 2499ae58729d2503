"""Any module that maps inputs to scores of classes, as the Trainer takes it."""

from __future__ import annotations

import torch
from torch import nn

from common.models.base import BaseModel


class Classifier(BaseModel):
    """Wraps `network`, which maps (batch, ...) to logits of (batch, num_classes)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.network(inputs)}
