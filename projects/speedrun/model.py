"""A neural n-gram model: the next token from the last few, without attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from common.models.base import BaseLanguageModel
from common.models.linear_loss import linear_next_token_loss
from common.models.loss import next_token_loss


@dataclass
class LastTokens:
    """(batch, up to window - 1) int64: previous tokens that the next prediction also sees."""

    tokens: torch.Tensor


class WindowEmbedding(nn.Module):
    """x_t = sum over k < window of table_k[token_{t-k}]: a causal convolution over one-hot tokens."""

    def __init__(self, vocab_size: int, hidden_size: int, window: int) -> None:
        super().__init__()
        self.vocab_size, self.window = vocab_size, window
        # Concatenated tables; the last row stands for positions before the text.
        self.tables = nn.Parameter(torch.randn(window * vocab_size + 1, hidden_size) * 0.25)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """(batch, time) int64 -> (batch, time, hidden_size)"""
        padded = F.pad(input_ids, (self.window - 1, 0), value=-1)
        newest_first = padded.unfold(1, self.window, 1).flip(-1)  # (batch, time, window)
        offsets = torch.arange(self.window, device=input_ids.device) * self.vocab_size
        rows = torch.where(newest_first < 0, len(self.tables) - 1, newest_first + offsets)
        bags = F.embedding_bag(rows.reshape(-1, self.window), self.tables, mode="sum")
        return bags.view(*input_ids.shape, -1)


class MLP(nn.Module):
    """x + W2 gelu(W1 rmsnorm(x))"""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.input = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.output = nn.Linear(intermediate_size, hidden_size, bias=False)
        nn.init.normal_(self.input.weight, std=hidden_size**-0.5)
        nn.init.zeros_(self.output.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        updated: torch.Tensor = x + self.output(F.gelu(self.input(_norm(x))))
        return updated


class NeuralNGram(BaseLanguageModel):
    """Bengio et al. 2003, "A Neural Probabilistic Language Model", with residual MLPs.

    Every position sees its own token and the `window - 1` before it.
    """

    def __init__(
        self,
        vocab_size: int,
        window: int = 4,
        hidden_size: int = 128,
        intermediate_size: int = 512,
        num_layers: int = 1,
    ) -> None:
        super().__init__(
            vocab_size,
            window=window,
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            num_layers=num_layers,
        )
        self.window = window
        self.embedding = WindowEmbedding(vocab_size, hidden_size, window)
        self.blocks = nn.ModuleList(MLP(hidden_size, intermediate_size) for _ in range(num_layers))
        self.head = nn.Linear(hidden_size, vocab_size, bias=False)
        nn.init.zeros_(self.head.weight)

    def new_cache(self, batch_size: int, max_length: int) -> LastTokens:
        empty = torch.empty(batch_size, 0, dtype=torch.int64, device=self.device)
        return LastTokens(empty)

    def forward(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor | None = None,
        cache: LastTokens | None = None,
    ) -> dict[str, torch.Tensor]:
        """See BaseLanguageModel.forward."""
        time = input_ids.shape[1]
        if cache is not None:
            input_ids = torch.cat([cache.tokens, input_ids], dim=1)
            cache.tokens = input_ids[:, -(self.window - 1) :] if self.window > 1 else cache.tokens
        output: dict[str, Any] = {"logits": self.head(self._hidden(input_ids)[:, -time:])}
        if labels is not None:
            output["loss"] = next_token_loss(output["logits"], labels)
        return output

    def compute_loss(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Compute the loss without all logits at once."""
        return linear_next_token_loss(self._hidden(input_ids), self.head.weight, labels)

    def _hidden(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = self.embedding(input_ids)
        for block in self.blocks:
            x = block(x)
        return _norm(x)


def _norm(x: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(x, x.shape[-1:], eps=1e-5)
