"""Dense feed-forward layers: the MLP of GPT-2 and the SwiGLU of Llama."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from common.models.config import DecoderConfig
from common.models.feedforwards.base import FeedForward
from common.models.mixers.base import Positions
from common.models.mixers.options import NoOptions

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "gelu": F.gelu,
    "relu_squared": lambda x: F.relu(x).square(),
}


class MLP(FeedForward):
    """W2 f(W1 x); f is `activation`, by default the tanh approximation of GELU, as in GPT-2.

    The exact GELU takes a third of the time on CPUs, ReLU squared (So et al. 2021, "Primer") less.
    """

    def __init__(self, config: DecoderConfig, options: NoOptions, layer: int) -> None:
        super().__init__()
        size = config.hidden_units("mlp")
        self.input = nn.Linear(config.hidden_size, size, bias=config.bias)
        self.output = nn.Linear(size, config.hidden_size, bias=config.bias)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: torch.Tensor, where: Positions) -> torch.Tensor:
        """See FeedForward.forward."""
        result: torch.Tensor = self.output(self.activation(self.input(x)))
        return result


class SwiGLU(FeedForward):
    """W2 (f(W1 x) * V x) with f = silu (Shazeer 2020, "GLU Variants Improve Transformer", eq. 6)."""

    def __init__(self, config: DecoderConfig, options: NoOptions, layer: int) -> None:
        super().__init__()
        size = config.hidden_units("swiglu")
        self.gate = nn.Linear(config.hidden_size, size, bias=config.bias)
        self.input = nn.Linear(config.hidden_size, size, bias=config.bias)
        self.output = nn.Linear(size, config.hidden_size, bias=config.bias)
        self.activation: Callable[[torch.Tensor], torch.Tensor] = F.silu

    def forward(self, x: torch.Tensor, where: Positions) -> torch.Tensor:
        """See FeedForward.forward."""
        result: torch.Tensor = self.output(self.activation(self.gate(x)) * self.input(x))
        return result


class GEGLU(SwiGLU):
    """SwiGLU with f = GELU, or another `activation` (Shazeer 2020, eq. 6)."""

    def __init__(self, config: DecoderConfig, options: NoOptions, layer: int) -> None:
        super().__init__(config, options, layer)
        self.activation = ACTIVATIONS[config.activation]
