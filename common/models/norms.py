"""Normalisation layers of a Decoder, by the name in its configuration."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from common.models.config import DecoderConfig


class ZeroCenteredRMSNorm(nn.Module):
    """x / rms(x) * (1 + weight), so that weight decay pulls the gain towards 1 (Gemma, Mesnard et al. 2024)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (..., size), as the result."""
        return F.rms_norm(x, self.weight.shape, 1 + self.weight, self.eps)


def make_norm(config: DecoderConfig) -> nn.Module:
    """The norm of the residual stream that `config.norm` names."""
    if config.norm == "layernorm":
        return nn.LayerNorm(config.hidden_size, eps=config.norm_eps or 1e-5, bias=config.bias)
    return make_rms_norm(config, config.hidden_size)


def make_rms_norm(config: DecoderConfig, size: int) -> nn.Module:
    """An RMSNorm over `size` values, zero-centered if those of the residual stream are."""
    eps = config.norm_eps or 1e-6
    zero_centered = config.norm == "zero_centered_rmsnorm"
    return ZeroCenteredRMSNorm(size, eps) if zero_centered else nn.RMSNorm(size, eps=eps)
