"""Causal multi-head attention (Vaswani et al. 2017, section 3.2), grouped-query, with RoPE, norms and a gate."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from common.models.config import DecoderConfig
from common.models.mixers.base import Mixer, Positions
from common.models.mixers.options import AttentionOptions, NoOptions, NoPositionOptions
from common.models.mixers.rope import RotaryEmbedding
from common.models.norms import make_rms_norm

_LONGEST_EAGER = 1024  # tokens; beyond it eager attention is slower


class KeyValueCache:
    """Cached keys and values: the first `length` of (batch, kv heads, room, head size).

    The room grows with the text up to `max_length` and is never much larger: contiguous memory is
    read nearly twice as fast as a piece per head with gaps in between.
    """

    def __init__(
        self, keys: torch.Tensor, values: torch.Tensor, max_length: int, window: int | None = None
    ) -> None:
        """keys, values: (batch, kv heads, 0, head size), with dtype and device of the cache; window: the
        number of last keys that a token sees, including its own, None: all."""
        self.keys, self.values = keys, values
        self.max_length, self.window = max_length, window
        self.room = self.length = 0

    def append(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Append keys and values, both (batch, kv heads, new tokens, head size)."""
        start, end = self.length, self.length + keys.shape[2]
        if self.window is not None and end > max(self.room, 2 * self.window):
            start, end = self._forget(), self.length + keys.shape[2]
        if end > self.room:
            most = self.max_length if self.window is None else 2 * self.window
            self._grow(max(end, min(end + end // 8 + 32, most)))
        self.keys[:, :, start:end] = keys
        self.values[:, :, start:end] = values
        self.length = end

    def _forget(self) -> int:
        """Move the keys that the next token sees to the front; returns how many they are."""
        assert self.window is not None
        kept = min(self.length, self.window - 1)
        for rows in (self.keys, self.values):
            rows[:, :, :kept] = rows[:, :, self.length - kept : self.length].clone()
            rows[:, :, kept:] = 0
        self.length = kept
        return kept

    def _grow(self, room: int) -> None:
        more = (0, 0, 0, room - self.room)
        self.keys, self.values = F.pad(self.keys, more), F.pad(self.values, more)
        written, empty = self.keys.new_zeros(room), self.keys.new_full((room,), float("-inf"))
        self.masks = torch.cat([written, empty])
        self.room = room

    def mask(self) -> torch.Tensor:
        """(room,): 0 where a key is written, else -infinity; added to scores."""
        return self.masks[self.room - self.length : 2 * self.room - self.length]


def eager_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dropout: float = 0.0,
    attention_mask: torch.Tensor | None = None,
    *,
    causal: bool = True,
    soft_cap: float | None = None,
) -> torch.Tensor:
    """Causal attention in plain operators: softmax(Q K^T / sqrt(head size)) V.

    On CPUs PyTorch's fused kernel takes up to 6 times as long for training on short contexts, most
    of it in its backward pass (measured in bf16: 7.4 and 1.3 ms at 64 tokens, 41 and 15 at 256).

    Args:
        query: (batch, heads, time, head size); key, value: the same with heads or a divisor of it; the
            heads of value may have another size.
        attention_mask: (batch or 1, 1, time, keys) bool, True where a query sees a key; None: what
            `causal` says.
        soft_cap: scores are soft_cap * tanh(scores / soft_cap) (Gemma 2, Riviere et al. 2024).
    """
    batch, heads, time, size = query.shape
    if key.shape[1] != heads:
        key, value = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (key, value))
    kind = query.device.type
    if torch.is_autocast_enabled(kind):
        # Norms and rotations may return fp32; autocast is off below, so the softmax is in this
        # dtype.
        dtype = torch.get_autocast_dtype(kind)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    with torch.autocast(kind, enabled=False):
        query, key, value = (
            x.reshape(batch * heads, x.shape[2], x.shape[3]) for x in (query, key, value)
        )
        if attention_mask is None:
            mask = torch.full((1, 1, time, time), -math.inf, dtype=query.dtype, device=query.device)
            mask = mask.triu(1 if causal else time)
        else:
            mask = torch.zeros(attention_mask.shape, dtype=query.dtype, device=query.device)
            mask = mask.masked_fill(~attention_mask, -math.inf)
        scale = 1 / math.sqrt(size)
        if soft_cap is None and len(mask) == 1:
            scores = torch.baddbmm(mask[0], query, key.transpose(1, 2), alpha=scale)
        else:
            scores = torch.bmm(query * scale, key.transpose(1, 2))
            if soft_cap is not None:
                scores = torch.tanh(scores / soft_cap) * soft_cap
            scores.view(batch, heads, time, -1).add_(mask)
        weights = F.dropout(scores.softmax(dim=-1), dropout, training=dropout > 0)
        return torch.bmm(weights, value).view(batch, heads, time, -1)


class Attention(Mixer):
    """softmax(Q K^T / sqrt(head size)) V per head; each position sees itself and earlier ones."""

    Options: type[NoOptions] = AttentionOptions
    needs_mask = True
    window: int | None = None

    def __init__(self, config: DecoderConfig, options: NoOptions, layer: int) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.num_kv_heads = config.num_kv_heads or config.num_heads
        self.head_size = config.size_of_heads
        self.context_length = config.context_length
        self.dropout = config.dropout
        self.soft_cap = config.attention_soft_cap
        sizes = (self.num_heads + 2 * self.num_kv_heads) * self.head_size
        qkv_bias = config.bias if config.qkv_bias is None else config.qkv_bias
        self.query_key_value = nn.Linear(config.hidden_size, sizes, bias=qkv_bias)
        inputs = self.num_heads * self.head_size
        self.output = nn.Linear(inputs, config.hidden_size, bias=config.bias)
        self.norms_projection = config.qk_norm == "projection"
        self.query_norm: nn.Module = nn.Identity()
        self.key_norm: nn.Module = nn.Identity()
        if config.qk_norm:
            heads = (self.num_heads, self.num_kv_heads) if self.norms_projection else (1, 1)
            self.query_norm = make_rms_norm(config, heads[0] * self.head_size)
            self.key_norm = make_rms_norm(config, heads[1] * self.head_size)
        self.gate: nn.Linear | None = None
        if config.attention_gate:
            self.gate = nn.Linear(config.hidden_size, inputs, bias=qkv_bias)
        self.query_factor: float | None = None  # the kernels divide scores by sqrt(head_size)
        if config.attention_scale is not None:
            self.query_factor = config.attention_scale * math.sqrt(self.head_size)
        self.rope = self._make_rope(config, options)

    def _make_rope(self, config: DecoderConfig, options: NoOptions) -> RotaryEmbedding | None:
        if config.positions != "rope":
            return None
        return RotaryEmbedding(
            config.rope_size, config.context_length, config.rope_theta, config.rope_scaling
        )

    @property
    def context_limit(self) -> int | None:
        """See Mixer.context_limit."""
        return self.context_length

    def flops_per_token(self, time: int) -> float:
        """Queries times keys and weights times values, as if every token saw all keys (PaLM, appendix B)."""
        return 4 * self.num_heads * self.head_size * min(time, self.window or time)

    def new_state(self, batch_size: int, max_length: int) -> KeyValueCache:
        """An empty cache for up to `max_length` tokens."""
        weight = self.output.weight
        shape = (batch_size, self.num_kv_heads, 0, self.head_size)
        # Not weight.new_empty, which would be sharded for a sharded weight.
        empty = torch.empty(shape, dtype=weight.dtype, device=weight.device)
        return KeyValueCache(empty, empty, max_length, self.window)

    def forward(
        self, x: torch.Tensor, where: Positions, state: KeyValueCache | None = None
    ) -> torch.Tensor:
        """See Mixer.forward."""
        batch, time, _ = x.shape
        query, key, value = self._heads(self.query_key_value(x))
        if self.rope is not None:
            query, key = self.rope(query, where.start), self.rope(key, where.start)
        if self.query_factor is not None:
            query = query * self.query_factor
        if state is not None:
            state.append(key, value)
            mixed = attention_to_cache(query, state, self.soft_cap)
        else:
            mixed = self.mix(query, key, value, where)
        mixed = mixed.transpose(1, 2).reshape(batch, time, -1)
        if self.gate is not None:
            mixed = mixed * self.gate(x).sigmoid()
        output: torch.Tensor = self.output(mixed)
        return output

    def _heads(self, projected: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(batch, time, sizes) -> queries, keys and values, each (batch, heads, time, head size), the
        first two normalised."""
        heads = (self.num_heads, self.num_kv_heads, self.num_kv_heads)
        if self.norms_projection:
            sizes = [number * self.head_size for number in heads]
            query, key, value = projected.split_with_sizes(sizes, dim=-1)
            projected = torch.cat([self.query_norm(query), self.key_norm(key), value], dim=-1)
        parts = projected.view(*projected.shape[:2], sum(heads), self.head_size).transpose(1, 2)
        query, key, value = parts.split_with_sizes(heads, dim=1)
        if not self.norms_projection:
            query, key = self.query_norm(query), self.key_norm(key)
        return query, key, value

    def mix(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, where: Positions
    ) -> torch.Tensor:
        """Attention within one pass; all (batch, heads or kv heads, time, head size)."""
        return attention(
            query,
            key,
            value,
            dropout=self.dropout if self.training else 0.0,
            attention_mask=where.mask,
            causal=where.causal,
            soft_cap=self.soft_cap,
        )


class NoPositionAttention(Attention):
    """Attention without RoPE, in a Decoder whose other layers have it (Kazemnejad et al. 2023, "NoPE")."""

    Options = NoPositionOptions

    def _make_rope(self, config: DecoderConfig, options: NoOptions) -> RotaryEmbedding | None:
        return None


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    dropout: float = 0.0,
    attention_mask: torch.Tensor | None = None,
    causal: bool = True,
    soft_cap: float | None = None,
) -> torch.Tensor:
    """`eager_attention`, or the fused kernel if it is faster for this length and device."""
    time = query.shape[2]
    if soft_cap is not None or (query.device.type == "cpu" and time <= _LONGEST_EAGER):
        return eager_attention(
            query, key, value, dropout, attention_mask, causal=causal, soft_cap=soft_cap
        )
    size = value.shape[3]
    padding = max(0, key.shape[3] - size)  # the fused kernels want one size
    output = F.scaled_dot_product_attention(
        query,
        key,
        F.pad(value, (0, padding)) if padding else value,
        attn_mask=attention_mask,
        is_causal=causal and time > 1 and attention_mask is None,
        dropout_p=dropout,
        enable_gqa=key.shape[1] != query.shape[1],
    )
    return output[..., :size]


def attention_to_cache(
    query: torch.Tensor, cache: KeyValueCache, soft_cap: float | None = None
) -> torch.Tensor:
    """Causal attention of the newest tokens to all keys of the cache, including their own.

    query and result: (batch, heads, new tokens, head size).
    """
    time, length = query.shape[2], cache.length
    if time == 1 and query.device.type == "cpu" and cache.window is None:
        return _attention_of_one(query, cache, soft_cap)
    keys, values, mask = cache.keys[:, :, :length], cache.values[:, :, :length], None
    window = cache.window or length
    if 1 < time < length or length > window:
        # PyTorch's is_causal counts positions from the first key: right only from an empty cache.
        ones = torch.ones(time, length, dtype=torch.bool, device=query.device)
        mask = ones.tril(diagonal=length - time).triu(diagonal=length - time - window + 1)
    if soft_cap is not None:
        return _capped_attention(query, keys, values, mask, soft_cap)
    return F.scaled_dot_product_attention(
        query,
        keys,
        values,
        attn_mask=mask,
        is_causal=time > 1 and mask is None,
        enable_gqa=keys.shape[1] != query.shape[1],
    )


def _capped_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    soft_cap: float,
) -> torch.Tensor:
    """`attention_to_cache` with capped scores; mask: (new tokens, keys) bool, None: causal."""
    shared = query.shape[1] // keys.shape[1]
    keys, values = (x.repeat_interleave(shared, dim=1) for x in (keys, values))
    scores = query @ keys.mT * (query.shape[3] ** -0.5 / soft_cap)
    scores = torch.tanh(scores) * soft_cap
    if mask is None:
        mask = torch.ones_like(scores, dtype=torch.bool).tril(keys.shape[2] - query.shape[2])
    return scores.masked_fill(~mask, -math.inf).softmax(dim=-1) @ values


def _attention_of_one(
    query: torch.Tensor, cache: KeyValueCache, soft_cap: float | None
) -> torch.Tensor:
    """Attention of one query per head to every key of the cache: a step of generation.

    On a CPU this is two matrix products over the whole room, which is zero where nothing is
    written. PyTorch's fused attention, made for many queries, takes up to twice as long.

    query and result: (batch, heads, 1, head size).
    """
    keys, values = cache.keys.flatten(0, 1), cache.values.flatten(0, 1)
    # The query heads that share a key head are rows of one product.
    grouped = query.reshape(keys.shape[0], -1, keys.shape[2])
    scale = keys.shape[2] ** -0.5
    if soft_cap is None:
        scores = torch.baddbmm(cache.mask(), grouped, keys.transpose(1, 2), alpha=scale)
    else:
        scores = torch.tanh(torch.bmm(grouped, keys.transpose(1, 2)) * (scale / soft_cap))
        scores = scores * soft_cap + cache.mask()
    return torch.bmm(scores.softmax(dim=-1), values).view(*query.shape[:3], -1)
