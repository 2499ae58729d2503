"""What happens to each token alone, between the mixers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from common.models.config import DecoderConfig


class MLP(nn.Module):
    """W2 gelu(W1 x), with the tanh form of GELU that GPT-2 was trained with."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        size = config.intermediate_size or 4 * config.hidden_size
        self.input = nn.Linear(config.hidden_size, size, bias=config.bias)
        self.output = nn.Linear(size, config.hidden_size, bias=config.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.output(F.gelu(self.input(x), approximate="tanh"))
        return result


class SwiGLU(nn.Module):
    """W2 (silu(W1 x) * V x) (Shazeer 2020, "GLU Variants Improve Transformer", eq. 6)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        # 8/3 of the width has the parameters of a 4x MLP; rounded up to a multiple of 32.
        size = config.intermediate_size or -(-config.hidden_size * 8 // (3 * 32)) * 32
        self.gate = nn.Linear(config.hidden_size, size, bias=config.bias)
        self.input = nn.Linear(config.hidden_size, size, bias=config.bias)
        self.output = nn.Linear(size, config.hidden_size, bias=config.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.output(F.silu(self.gate(x)) * self.input(x))
        return result
