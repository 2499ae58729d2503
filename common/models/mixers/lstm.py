"""Long short-term memory (Hochreiter and Schmidhuber 1997; the gates as in `torch.nn.LSTM`)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from common.models.config import DecoderConfig


@dataclass
class LSTMState:
    """Hidden and cell state, each (1, batch, hidden_size), carried from token to token."""

    hidden: torch.Tensor
    cell: torch.Tensor


class LSTM(nn.Module):
    """One LSTM layer; the cost per token does not depend on the context."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.lstm = nn.LSTM(config.hidden_size, config.hidden_size, batch_first=True)

    def new_cache(self, batch_size: int, max_length: int) -> LSTMState:
        """A state of zeros; `max_length` has no effect."""
        weight = next(self.parameters())
        shape = (1, batch_size, self.lstm.hidden_size)
        zeros = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        return LSTMState(zeros, zeros)

    def forward(self, x: torch.Tensor, cache: LSTMState | None = None) -> torch.Tensor:
        """x: (batch, time, hidden_size)"""
        state = (cache.hidden, cache.cell) if cache else None
        output, (hidden, cell) = self.lstm(x, state)
        if cache is not None:
            cache.hidden, cache.cell = hidden, cell
        return output  # type: ignore[no-any-return]  # nn.Module.__call__ is untyped
