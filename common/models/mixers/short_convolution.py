"""Taps of causal convolutions, and the short depthwise convolution before many recurrences."""

from __future__ import annotations

import torch
from torch import nn

from common.models.mixers.base import Positions


def taps(
    x: torch.Tensor,
    size: int,
    where: Positions,
    past: torch.Tensor | None = None,
    dilation: int = 1,
) -> list[torch.Tensor]:
    """The inputs of a causal kernel, oldest first; zero where they belong to another document.

    Args:
        x: (batch, time, channels), as each of the results.
        past: (batch, (size - 1) * dilation, channels), the tokens before x; None: zeros.
    """
    time, reach = x.shape[1], (size - 1) * dilation
    if past is None:
        past = x.new_zeros(x.shape[0], reach, x.shape[2])
    padded = torch.cat([past.to(x.dtype), x], dim=1)
    shifted = [padded[:, start : start + time] for start in range(0, reach + 1, dilation)]
    if where.documents is None:
        return shifted
    documents = where.documents
    earlier = torch.cat([documents[:, :1].expand(-1, reach), documents], dim=1)
    return [
        tap * (earlier[:, start : start + time] == documents)[..., None].to(x.dtype)
        for start, tap in zip(range(0, reach + 1, dilation), shifted, strict=True)
    ]


def last_inputs(x: torch.Tensor, past: torch.Tensor) -> torch.Tensor:
    """Update `past`: the last inputs, including x."""
    return torch.cat([past.to(x.dtype), x], dim=1)[:, x.shape[1] :]


class ShortConvolution(nn.Module):
    """Causal depthwise convolution, with the weights of a depthwise `nn.Conv1d`."""

    def __init__(self, channels: int, kernel_size: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, kernel_size))
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as `nn.Conv1d`: uniform within 1 / sqrt(kernel_size)."""
        bound = self.weight.shape[2] ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def new_past(self, batch_size: int) -> torch.Tensor:
        """(batch, kernel_size - 1, channels) of zeros."""
        channels, _, size = self.weight.shape
        return torch.zeros(
            batch_size, size - 1, channels, dtype=self.weight.dtype, device=self.weight.device
        )

    def forward(
        self, x: torch.Tensor, where: Positions, past: torch.Tensor | None = None
    ) -> torch.Tensor:
        """x: (batch, time, channels), as the result; past: the inputs before it."""
        weights = self.weight.to(x.dtype)[:, 0].unbind(1)
        seen = taps(x, len(weights), where, past)
        output = seen[0] * weights[0]
        for tap, weight in zip(seen[1:], weights[1:], strict=True):
            output = torch.addcmul(output, tap, weight)
        return output if self.bias is None else output + self.bias.to(x.dtype)
