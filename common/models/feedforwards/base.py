"""The interface of feed-forward layers, which transform each token separately."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import nn

from common.config import Config
from common.models.mixers.base import Positions
from common.models.mixers.options import NoOptions


class FeedForward(nn.Module):
    """Map (batch, time, hidden_size) to the same shape, each token separately.

    Subclasses take (config: DecoderConfig, options: Options, layer: int), like mixers.
    """

    Options: type[Config] = NoOptions  # what `model.options.<name>` may set

    @abstractmethod
    def forward(self, x: torch.Tensor, where: Positions) -> torch.Tensor:
        """x and result: (batch, time, hidden_size)."""

    def active_parameters(self) -> int:
        """The number of parameters that one token is multiplied by."""
        return sum(parameter.numel() for parameter in self.parameters())

    def reset_parameters(self, std: float, output_std: float) -> None:
        """Initialise parameters other than those of `nn.Linear`.

        Args:
            std: standard deviation of weights.
            output_std: the same, of weights that write into the residual stream.
        """
