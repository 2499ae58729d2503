"""Causal multi-head attention (Vaswani et al. 2017, section 3.2), grouped-query, with RoPE and QK-norm."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from common.models.config import DecoderConfig

_LONGEST_EXPLICIT = 1024  # tokens; beyond it the (time, time) weights cost more than they save


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


def explicit_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float = 0.0
) -> torch.Tensor:
    """Causal attention written out: softmax(Q K^T / sqrt(head size)) V.

    On CPUs PyTorch's fused kernel takes up to 6 times as long for training on short contexts, most
    of it in its backward pass (measured in bf16: 7.4 and 1.3 ms at 64 tokens, 41 and 15 at 256).

    Args:
        query: (batch, heads, time, head size); key, value: the same with heads or a divisor of it.
    """
    batch, heads, time, size = query.shape
    if key.shape[1] != heads:
        key, value = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (key, value))
    kind = query.device.type
    if torch.is_autocast_enabled(kind):
        # Norms and rotations may have left fp32; below nothing is cast, so the softmax stays small.
        dtype = torch.get_autocast_dtype(kind)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    with torch.autocast(kind, enabled=False):
        query, key, value = (x.reshape(batch * heads, time, size) for x in (query, key, value))
        mask = torch.full((time, time), -math.inf, dtype=query.dtype, device=query.device).triu(1)
        scores = torch.baddbmm(mask, query, key.transpose(1, 2), alpha=1 / math.sqrt(size))
        weights = F.dropout(scores.softmax(dim=-1), dropout, training=dropout > 0)
        return torch.bmm(weights, value).view(batch, heads, time, size)


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
        zeros = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        return KeyValueCache(zeros, zeros.clone())

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
        if cache is None and query.device.type == "cpu" and time <= _LONGEST_EXPLICIT:
            dropout = self.dropout if self.training else 0.0
            mixed = explicit_attention(query, key, value, dropout)
            return self.output(mixed.transpose(1, 2).reshape(batch, time, hidden))  # type: ignore[no-any-return]  # nn.Module.__call__ is untyped
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
