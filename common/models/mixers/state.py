"""The state of recurrent mixers, constant in size."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass
class RecurrentState:
    """`hidden`: (batch, ...) of the recurrence; `past`: (batch, kernel_size - 1, channels), last inputs of
    the short convolution, if any."""

    hidden: torch.Tensor
    past: torch.Tensor | None = None


def zeros(like: torch.Tensor, *shape: int) -> torch.Tensor:
    """Zeros on the device of the weight `like`, in fp32 or better."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    return torch.zeros(shape, dtype=dtype, device=like.device)
