"""Causal multi-head attention (Vaswani et al. 2017, section 3.2), grouped-query, with RoPE and QK-norm."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from common.models.config import DecoderConfig


@dataclass
class KeyValueCache:
    """Keys and values seen so far: the first `length` of (batch, kv heads, max_length, head size)."""

    keys: torch.Tensor
    values: torch.Tensor
    length: int = 0

    def append(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        end = self.length + keys.shape[2]
        self.keys[:, :, self.length : end] = keys
        self.values[:, :, self.length : end] = values
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class RotaryEmbedding(nn.Module):
    """Su et al. 2021, "RoFormer", eq. 34, with the halves-apart layout of Llama checkpoints."""

    cosine: torch.Tensor
    sine: torch.Tensor

    def __init__(self, head_size: int, context_length: int, theta: float) -> None:
        super().__init__()
        frequencies = theta ** (-torch.arange(0, head_size, 2, dtype=torch.float64) / head_size)
        angles = torch.outer(torch.arange(context_length, dtype=torch.float64), frequencies)
        angles = torch.cat([angles, angles], dim=-1)
        self.register_buffer("cosine", angles.cos().float(), persistent=False)
        self.register_buffer("sine", angles.sin().float(), persistent=False)

    def forward(self, x: torch.Tensor, start: int) -> torch.Tensor:
        """Turn x (batch, heads, time, head_size), whose first position is `start`."""
        cosine = self.cosine[start : start + x.shape[2]].to(x.dtype)
        sine = self.sine[start : start + x.shape[2]].to(x.dtype)
        first, second = x.chunk(2, dim=-1)
        return x * cosine + torch.cat([-second, first], dim=-1) * sine


class Attention(nn.Module):
    """softmax(Q K^T / sqrt(head size)) V per head, each position seeing itself and those before it."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.num_kv_heads = config.num_kv_heads or config.num_heads
        self.head_size = config.hidden_size // config.num_heads
        self.dropout = config.dropout
        sizes = (self.num_heads + 2 * self.num_kv_heads) * self.head_size
        self.query_key_value = nn.Linear(config.hidden_size, sizes, bias=config.bias)
        self.output = nn.Linear(config.hidden_size, config.hidden_size, bias=config.bias)
        self.query_norm = nn.RMSNorm(self.head_size, eps=1e-6) if config.qk_norm else nn.Identity()
        self.key_norm = nn.RMSNorm(self.head_size, eps=1e-6) if config.qk_norm else nn.Identity()
        self.rope = None
        if config.positions == "rope":
            self.rope = RotaryEmbedding(self.head_size, config.context_length, config.rope_theta)

    def new_cache(self, batch_size: int, max_length: int) -> KeyValueCache:
        weight = self.output.weight
        shape = (batch_size, self.num_kv_heads, max_length, self.head_size)
        return KeyValueCache(weight.new_zeros(shape), weight.new_zeros(shape))

    def forward(self, x: torch.Tensor, cache: KeyValueCache | None = None) -> torch.Tensor:
        """x: (batch, time, hidden_size)"""
        batch, time, hidden = x.shape
        heads = (self.num_heads, self.num_kv_heads, self.num_kv_heads)
        projected = self.query_key_value(x).view(batch, time, sum(heads), self.head_size)
        query, key, value = projected.transpose(1, 2).split(heads, dim=1)
        query, key = self.query_norm(query), self.key_norm(key)
        start = cache.length if cache else 0
        if self.rope is not None:
            query, key = self.rope(query, start), self.rope(key, start)
        if cache is not None:
            key, value = cache.append(key, value)
        mixed = F.scaled_dot_product_attention(
            query,
            key,
            value,
            # PyTorch's is_causal counts positions from the first key: right only from an empty cache.
            attn_mask=self._mask(time, start, x.device) if start and time > 1 else None,
            is_causal=start == 0 and time > 1,
            dropout_p=self.dropout if self.training else 0.0,
            enable_gqa=self.num_kv_heads != self.num_heads,
        )
        output: torch.Tensor = self.output(mixed.transpose(1, 2).reshape(batch, time, hidden))
        return output

    @staticmethod
    def _mask(time: int, start: int, device: torch.device) -> torch.Tensor:
        """(time, start + time) bool: new position t sees the first start + t + 1 keys."""
        ones = torch.ones(time, start + time, dtype=torch.bool, device=device)
        return ones.tril(diagonal=start)
