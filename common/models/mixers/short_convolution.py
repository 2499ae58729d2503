"""Taps of causal convolutions, and the short depthwise convolution before many recurrences."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from common.models.mixers.base import Positions
from common.models.mixers.state import Past, zeros


def extended(x: torch.Tensor, reach: int, inputs: Past | None) -> torch.Tensor:
    """(batch, reach + time, channels): the `reach` inputs before x, zeros without a state, and x."""
    if inputs is not None:
        return inputs.extend(x)
    return torch.cat([x.new_zeros(x.shape[0], reach, x.shape[2]), x], dim=1)


def taps(
    x: torch.Tensor, size: int, where: Positions, inputs: Past | None = None, dilation: int = 1
) -> list[torch.Tensor]:
    """The inputs of a causal kernel, oldest first, each (batch, time, channels) as x; zero where they
    belong to another document."""
    time, reach = x.shape[1], (size - 1) * dilation
    longer = extended(x, reach, inputs)
    shifted = [longer[:, start : start + time] for start in range(0, reach + 1, dilation)]
    if where.documents is None:
        return shifted
    documents = where.documents
    earlier = torch.cat([documents[:, :1].expand(-1, reach), documents], dim=1)
    return [
        tap * (earlier[:, start : start + time] == documents)[..., None].to(x.dtype)
        for start, tap in zip(range(0, reach + 1, dilation), shifted, strict=True)
    ]


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

    def new_past(self, batch_size: int) -> Past:
        """kernel_size - 1 inputs of zeros."""
        channels, _, size = self.weight.shape
        return Past(zeros(self.weight, batch_size, size - 1, channels))

    def forward(
        self, x: torch.Tensor, where: Positions, inputs: Past | None = None
    ) -> torch.Tensor:
        """x: (batch, time, channels), as the result; inputs: those before it."""
        weight = self.weight.to(x.dtype)[:, 0].T.contiguous()
        padded = extended(x, len(weight) - 1, inputs)
        if x.shape[1] == 1:
            output = (padded * weight).sum(dim=1, keepdim=True)
        else:
            same = _same_document(where, len(weight), x.dtype)
            output = _Depthwise.apply(padded, weight, same)  # type: ignore[no-untyped-call]  # PyTorch's apply
        return output if self.bias is None else output + self.bias.to(x.dtype)


def _same_document(where: Positions, size: int, dtype: torch.dtype) -> torch.Tensor | None:
    """(size, batch, time, 1): 1 where the tap of a token lies in its document, the oldest tap first."""
    documents = where.documents
    if documents is None:
        return None
    time = documents.shape[1]
    earlier = torch.cat([documents[:, :1].expand(-1, size - 1), documents], dim=1)
    same = [earlier[:, start : start + time] == documents for start in range(size)]
    return torch.stack(same)[..., None].to(dtype)


class _Depthwise(torch.autograd.Function):
    """The sum of taps times weights. Its backward pass takes 60% of the time of autograd's, which pads
    the gradient of each tap to the length of the input before it adds them."""

    @staticmethod
    def forward(
        ctx: Any,
        padded: torch.Tensor,
        weight: torch.Tensor,
        same: torch.Tensor | None,
    ) -> torch.Tensor:
        """padded: (batch, size - 1 + time, channels); weight: (size, channels); same: see `_same_document`."""
        ctx.save_for_backward(padded, weight, same)
        time = padded.shape[1] - len(weight) + 1
        output = torch.zeros_like(padded[:, :time])
        for start, factor in enumerate(weight):
            tap = padded[:, start : start + time]
            output.addcmul_(tap if same is None else tap * same[start], factor)
        return output

    @staticmethod
    def backward(ctx: Any, to_output: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        padded, weight, same = ctx.saved_tensors
        time = to_output.shape[1]
        to_padded, to_weight = torch.zeros_like(padded), []
        for start, factor in enumerate(weight):
            part = to_output if same is None else to_output * same[start]
            to_padded[:, start : start + time].addcmul_(part, factor)
            to_weight.append((part * padded[:, start : start + time]).sum(dim=(0, 1)))
        return to_padded, torch.stack(to_weight), None
