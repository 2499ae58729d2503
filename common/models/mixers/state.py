"""What recurrent mixers carry from token to token. Its size does not grow with the text."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass
class RecurrentState:
    """`hidden`: (batch, ...) of the recurrence; `past`: (batch, kernel_size - 1, channels), the last inputs
    of the short convolution before it, where there is one."""

    hidden: torch.Tensor
    past: torch.Tensor | None = None


def zeros(like: torch.Tensor, *shape: int) -> torch.Tensor:
    """Zeros where the weight `like` is, in fp32 or better."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    return torch.zeros(shape, dtype=dtype, device=like.device)
