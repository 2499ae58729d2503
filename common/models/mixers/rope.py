"""Rotary position embedding (Su et al. 2021, "RoFormer", eq. 34) and its scaling to longer contexts."""

from __future__ import annotations

import math

import torch
from torch import nn

from common.models.rope_scaling import (
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RopeScaling,
    YarnScaling,
)


def rope_frequencies(
    size: int, theta: float, scaling: RopeScaling | None, long: bool = False
) -> torch.Tensor:
    """(size / 2,) float64, radians per token; `long`: those of LongRoPE for long texts."""
    frequencies = theta ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    match scaling:
        case LinearScaling():
            return frequencies / scaling.factor
        case Llama3Scaling():
            turns = scaling.original_context_length * frequencies / (2 * math.pi)
            low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
            kept = ((turns - low) / (high - low)).clamp(0, 1)
            return frequencies * (kept + (1 - kept) / scaling.factor)
        case YarnScaling():
            kept = 1 - _yarn_ramp(size, theta, scaling)
            return frequencies * (kept + (1 - kept) / scaling.factor)
        case LongRopeScaling():
            factors = scaling.long_factors if long else scaling.short_factors
            return frequencies / torch.tensor(factors, dtype=torch.float64)
        case None:
            return frequencies


def _yarn_ramp(size: int, theta: float, scaling: YarnScaling) -> torch.Tensor:
    """(size / 2,) from 0 (kept) to 1 (divided); linear in the dimension (Peng et al. 2023, section 3.2)."""

    def dimension(turns: float) -> float:
        wavelength = scaling.original_context_length / (turns * 2 * math.pi)
        return size * math.log(wavelength) / (2 * math.log(theta))

    low, high = dimension(scaling.fast_turns), dimension(scaling.slow_turns)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    width = high - low if high != low else 0.001
    return ((torch.arange(size // 2, dtype=torch.float64) - low) / width).clamp(0, 1)


class RotaryEmbedding(nn.Module):
    """Rotates the first `size` dimensions of each head, with the halves-apart layout of Llama checkpoints."""

    cosine: torch.Tensor
    sine: torch.Tensor
    long_cosine: torch.Tensor | None
    long_sine: torch.Tensor | None

    def __init__(
        self, size: int, context_length: int, theta: float, scaling: RopeScaling | None = None
    ) -> None:
        super().__init__()
        self.size, self.context_length = size, context_length
        self.theta, self.scaling = theta, scaling
        for name in ("cosine", "sine", "long_cosine", "long_sine"):
            self.register_buffer(name, None, persistent=False)
        self.reset_buffers()

    def reset_buffers(self) -> None:
        """Fill the tables, which are not saved with the weights."""
        self.cosine, self.sine = self._tables(long=False)
        if self.switch is not None:
            self.long_cosine, self.long_sine = self._tables(long=True)

    @property
    def switch(self) -> int | None:
        """LongRoPE: the length of text beyond which all tokens are rotated by the long factors."""
        scaling = self.scaling
        return scaling.original_context_length if isinstance(scaling, LongRopeScaling) else None

    def _tables(self, long: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines, both (context_length, size) float32."""
        frequencies = rope_frequencies(self.size, self.theta, self.scaling, long)
        angles = torch.outer(torch.arange(self.context_length, dtype=torch.float64), frequencies)
        angles = torch.cat([angles, angles], dim=-1)
        factor = 1.0
        if isinstance(self.scaling, YarnScaling):
            factor = self.scaling.table_factor()
        elif isinstance(self.scaling, LongRopeScaling):
            factor = self.scaling.attention_factor
        return (angles.cos() * factor).float(), (angles.sin() * factor).float()

    def forward(self, x: torch.Tensor, start: int) -> torch.Tensor:
        """Rotate x (batch, heads, time, head_size), whose first position is `start`."""
        end = start + x.shape[2]
        cosine, sine = self.cosine, self.sine
        if self.switch is not None and end > self.switch:
            assert self.long_cosine is not None and self.long_sine is not None
            cosine, sine = self.long_cosine, self.long_sine
        cosine, sine = cosine[start:end].to(x.dtype), sine[start:end].to(x.dtype)
        if self.size == x.shape[3]:
            return _rotate(x, cosine, sine)
        rotated, kept = x.split_with_sizes([self.size, x.shape[3] - self.size], dim=-1)
        return torch.cat([_rotate(rotated, cosine, sine), kept], dim=-1)


def _rotate(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """x: (batch, heads, time, size); cosine and sine: (time, size)."""
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat([-second, first], dim=-1) * sine
