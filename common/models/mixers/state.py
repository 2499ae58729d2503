"""The states of recurrent and convolutional mixers, constant in size."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass
class Past:
    """`past`: (batch, reach, channels), the last inputs, which a causal convolution still sees."""

    past: torch.Tensor

    def extend(self, x: torch.Tensor) -> torch.Tensor:
        """Return `past` and x, (batch, reach + time, channels), and keep the last of them."""
        extended = torch.cat([self.past.to(x.dtype), x], dim=1)
        self.past = extended[:, x.shape[1] :].clone()  # a view would keep all of a long text
        return extended


@dataclass
class RecurrentState:
    """`hidden`: (batch, ...) of the recurrence; `inputs`: of the short convolution before it, if any."""

    hidden: torch.Tensor
    inputs: Past | None = None


def zeros(like: torch.Tensor, *shape: int) -> torch.Tensor:
    """Zeros on the device of the weight `like`, in fp32 or better."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    return torch.zeros(shape, dtype=dtype, device=like.device)
