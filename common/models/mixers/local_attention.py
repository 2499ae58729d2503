"""Attention to the last tokens only; its cache is constant in size."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from common.models.config import DecoderConfig
from common.models.mixers.attention import Attention, eager_attention
from common.models.mixers.base import Positions
from common.models.mixers.options import NoOptions, WindowOptions
from common.models.mixers.rope import RotaryEmbedding


class LocalAttention(Attention):
    """Attention to the last `window` tokens (Beltagy et al. 2020, "Longformer", section 3.1), and to the
    next ones if not causal; its cache is constant in size."""

    Options = WindowOptions

    def __init__(self, config: DecoderConfig, options: WindowOptions, layer: int) -> None:
        super().__init__(config, options, layer)
        self.window: int = options.window

    def _make_rope(self, config: DecoderConfig, options: NoOptions) -> RotaryEmbedding | None:
        assert isinstance(options, WindowOptions)
        if config.positions != "rope":
            return None
        theta = options.rope_theta or config.rope_theta
        scaling = config.rope_scaling if options.rope_scaling else None
        return RotaryEmbedding(config.rope_size, config.context_length, theta, scaling)

    @property
    def context_limit(self) -> int | None:
        """See Mixer.context_limit; the table of RoPE is as long as the context."""
        return None if self.rope is None else self.context_length

    def mix(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, where: Positions
    ) -> torch.Tensor:
        """See Attention.mix. Each window of queries sees its own keys and those of the window before it,
        so that time and memory grow with the length, not with its square."""
        batch, _, time, _ = query.shape
        if time <= self.window:
            return super().mix(query, key, value, where)
        blocks = -(-time // self.window)
        attention_mask = self._mask_of_blocks(where, blocks, time, query.device)
        mixed = eager_attention(
            self._in_blocks(query, blocks, 0, 0),
            self._in_blocks(key, blocks, 1, 0 if where.causal else 1),
            self._in_blocks(value, blocks, 1, 0 if where.causal else 1),
            self.dropout if self.training else 0.0,
            attention_mask.expand(batch, -1, -1, -1).flatten(0, 1)[:, None],
            soft_cap=self.soft_cap,
        )
        mixed = mixed.view(batch, blocks, -1, self.window, mixed.shape[3])
        return mixed.transpose(1, 2).flatten(2, 3)[:, :, :time]

    def _in_blocks(self, x: torch.Tensor, blocks: int, before: int, after: int) -> torch.Tensor:
        """(batch, heads, time, size) -> (batch * blocks, heads, (before + 1 + after) * window, size)"""
        missing = blocks * self.window - x.shape[2]
        x = F.pad(x, (0, 0, before * self.window, after * self.window + missing))
        size = (before + 1 + after) * self.window
        return x.unfold(2, size, self.window).permute(0, 2, 1, 4, 3).flatten(0, 1)

    def _mask_of_blocks(
        self, where: Positions, blocks: int, time: int, device: torch.device
    ) -> torch.Tensor:
        """(batch or 1, blocks, window, keys) bool, True where a query sees a key."""
        positions = torch.arange(blocks * self.window, device=device)[None, None, :, None]
        after = 0 if where.causal else 1
        queries = self._in_blocks(positions, blocks, 0, 0)  # (blocks, 1, window, 1)
        keys = self._in_blocks(positions + 1, blocks, 1, after).mT - 1  # padding is at -1
        distance = queries - keys
        near = (distance >= 0) if where.causal else (distance > -self.window)
        near = (near & (distance < self.window) & (keys >= 0) & (keys < time))[:, 0]
        near |= queries[:, 0] >= time  # rows of padding: without a key softmax is NaN
        if where.documents is None:
            return near[None]
        documents = F.pad(where.documents, (0, positions.shape[2] - time), value=-1)
        documents = documents[:, None, :, None]
        shape = (len(documents), blocks, self.window, -1)
        of_queries = self._in_blocks(documents, blocks, 0, 0).view(shape)
        of_keys = self._in_blocks(documents, blocks, 1, after).view(*shape[:2], -1, 1).mT
        return near & ((of_queries == of_keys) | (of_queries < 0))
