"""What a feed-forward layer is: what happens to each token alone, between the mixers."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import nn

from common.config import Config
from common.models.mixers.base import Positions
from common.models.mixers.options import NoOptions


class FeedForward(nn.Module):
    """Maps (batch, time, hidden_size) to the same shape, each token by itself. The constructor of a subclass
    gets (config: DecoderConfig, options: Options, layer: int), as that of a Mixer."""

    Options: type[Config] = NoOptions  # what `model.options.<name>` may set

    @abstractmethod
    def forward(self, x: torch.Tensor, where: Positions) -> torch.Tensor:
        """x: (batch, time, hidden_size), as the result."""

    def active_parameters(self) -> int:
        """How many parameters one token is multiplied with."""
        return sum(parameter.numel() for parameter in self.parameters())

    def reset_parameters(self, std: float, output_std: float) -> None:
        """Initialise what is neither the weight nor the bias of an `nn.Linear`; `output_std`: of what writes
        into the residual stream."""
