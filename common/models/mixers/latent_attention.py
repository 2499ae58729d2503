"""Multi-head latent attention (DeepSeek-AI 2024, "DeepSeek-V2", section 2.1): keys and values from one latent."""

from __future__ import annotations

import torch
from torch import nn

from common.models.config import DecoderConfig
from common.models.mixers.attention import (
    KeyValueCache,
    attention,
    attention_to_cache,
)
from common.models.mixers.base import Mixer, Positions
from common.models.mixers.options import LatentOptions
from common.models.mixers.rope import RotaryEmbedding
from common.models.rope_scaling import YarnScaling


class LatentAttention(Mixer):
    """Attention whose cache holds a latent per token instead of the keys and values of all heads.

    A key is a part without positions, computed from the latent, and a part with RoPE that all heads share.
    """

    Options = LatentOptions
    needs_mask = True

    def __init__(self, config: DecoderConfig, options: LatentOptions, layer: int) -> None:
        super().__init__()
        self.num_heads, self.context_length = config.num_heads, config.context_length
        self.key_size, self.rope_size = config.size_of_heads, options.rope_size
        self.value_size = options.value_size or self.key_size
        self.latent_size, self.dropout = options.latent_size, config.dropout
        self.soft_cap = config.attention_soft_cap
        eps, hidden = config.norm_eps or 1e-6, config.hidden_size
        queries = self.num_heads * (self.key_size + self.rope_size)
        compressed = options.query_latent_size
        self.query: nn.Module = nn.Linear(hidden, queries, bias=False)
        if compressed is not None:
            self.query = nn.Sequential(
                nn.Linear(hidden, compressed, bias=False),
                nn.RMSNorm(compressed, eps=eps),
                nn.Linear(compressed, queries, bias=False),
            )
        self.compress = nn.Linear(hidden, self.latent_size + self.rope_size, bias=False)
        self.norm = nn.RMSNorm(self.latent_size, eps=eps)
        expanded = self.num_heads * (self.key_size + self.value_size)
        self.expand = nn.Linear(self.latent_size, expanded, bias=False)
        self.output = nn.Linear(self.num_heads * self.value_size, hidden, bias=False)
        self.rope: RotaryEmbedding | None = None
        self.query_factor: float | None = None
        if config.positions == "rope":
            scaling = config.rope_scaling
            self.rope = RotaryEmbedding(
                self.rope_size, config.context_length, config.rope_theta, scaling
            )
            if isinstance(scaling, YarnScaling) and scaling.mscale_all:
                self.query_factor = scaling.magnitude(scaling.mscale_all) ** 2

    @property
    def context_limit(self) -> int | None:
        """See Mixer.context_limit."""
        return self.context_length

    def flops_per_token(self, time: int) -> float:
        """See Attention.flops_per_token."""
        return 2 * self.num_heads * (self.key_size + self.rope_size + self.value_size) * time

    def new_state(self, batch_size: int, max_length: int) -> KeyValueCache:
        """An empty cache with one head: keys are the latent and the shared part, values the latent."""
        weight = self.output.weight
        shape = (batch_size, 1, 0, self.latent_size + self.rope_size)
        empty = torch.empty(shape, dtype=weight.dtype, device=weight.device)
        return KeyValueCache(empty, empty[..., : self.latent_size], max_length)

    def forward(
        self, x: torch.Tensor, where: Positions, state: KeyValueCache | None = None
    ) -> torch.Tensor:
        """See Mixer.forward."""
        query = self.query(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        query, turned = query.split([self.key_size, self.rope_size], dim=-1)
        latent, shared = self.compress(x).split([self.latent_size, self.rope_size], dim=-1)
        latent, shared = self.norm(latent), shared[:, None]
        if self.rope is not None:
            turned, shared = self.rope(turned, where.start), self.rope(shared, where.start)
        if self.query_factor is not None:
            query, turned = query * self.query_factor, turned * self.query_factor
        if state is None:
            mixed = self._attend(query, turned, latent, shared, where)
        else:
            state.append(torch.cat([latent[:, None], shared], dim=-1), latent[:, None])
            mixed = self._attend_to_cache(query, turned, state)
        output: torch.Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return output

    def _attend(
        self,
        query: torch.Tensor,
        turned: torch.Tensor,
        latent: torch.Tensor,
        shared: torch.Tensor,
        where: Positions,
    ) -> torch.Tensor:
        expanded = self.expand(latent).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        key, value = expanded.split([self.key_size, self.value_size], dim=-1)
        shared = shared.expand(-1, self.num_heads, -1, -1)
        return attention(
            torch.cat([query, turned], dim=-1),
            torch.cat([key, shared.to(key.dtype)], dim=-1),
            value,
            dropout=self.dropout if self.training else 0.0,
            attention_mask=where.mask,
            causal=where.causal,
            soft_cap=self.soft_cap,
        )

    def _attend_to_cache(
        self, query: torch.Tensor, turned: torch.Tensor, cache: KeyValueCache
    ) -> torch.Tensor:
        """Multiply queries by the key weights instead of expanding all latents (section 2.1.2)."""
        weight = self.expand.weight.view(
            self.num_heads, -1, self.latent_size
        )  # (heads, sizes, latent)
        of_key, of_value = weight.split_with_sizes([self.key_size, self.value_size], dim=1)
        query = torch.cat([query @ of_key, turned], dim=-1)
        # attention_to_cache divides by the root of this longer size.
        size = self.key_size + self.rope_size
        query = query * (query.shape[-1] / size) ** 0.5
        mixed: torch.Tensor = attention_to_cache(query, cache, self.soft_cap) @ of_value.mT
        return mixed
