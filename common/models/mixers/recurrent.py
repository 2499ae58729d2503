"""LSTM and GRU, which compute token by token, with the equations of `torch.nn`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from common.models.config import DecoderConfig
from common.models.mixers.base import Mixer, Positions
from common.models.mixers.options import NoOptions


@dataclass
class LSTMState:
    """Hidden and cell state, each (1, batch, hidden_size), carried from token to token."""

    hidden: torch.Tensor
    cell: torch.Tensor


@dataclass
class GRUState:
    """The hidden state, (1, batch, hidden_size), carried from token to token."""

    hidden: torch.Tensor


class LSTM(Mixer):
    """One layer of long short-term memory (Hochreiter and Schmidhuber 1997)."""

    def __init__(self, config: DecoderConfig, options: NoOptions, layer: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(config.hidden_size, config.hidden_size, batch_first=True)

    def new_state(self, batch_size: int, max_length: int) -> LSTMState:
        """A state of zeros; `max_length` has no effect."""
        zeros = _zeros(self.lstm, batch_size)
        return LSTMState(zeros, zeros)

    def forward(
        self, x: torch.Tensor, where: Positions, state: LSTMState | None = None
    ) -> torch.Tensor:
        """See Mixer.forward."""
        if where.documents is not None:
            return document_by_document(self.lstm, x, where.documents)
        given = (state.hidden, state.cell) if state else None
        output, (hidden, cell) = self.lstm(x, given)
        if state is not None:
            state.hidden, state.cell = hidden, cell
        return output  # type: ignore[no-any-return]  # nn.Module.__call__ is untyped


class GRU(Mixer):
    """One layer of gated recurrent units (Cho et al. 2014)."""

    def __init__(self, config: DecoderConfig, options: NoOptions, layer: int) -> None:
        super().__init__()
        self.gru = nn.GRU(config.hidden_size, config.hidden_size, batch_first=True)

    def new_state(self, batch_size: int, max_length: int) -> GRUState:
        """A state of zeros; `max_length` has no effect."""
        return GRUState(_zeros(self.gru, batch_size))

    def forward(
        self, x: torch.Tensor, where: Positions, state: GRUState | None = None
    ) -> torch.Tensor:
        """See Mixer.forward."""
        if where.documents is not None:
            return document_by_document(self.gru, x, where.documents)
        output, hidden = self.gru(x, state.hidden if state else None)
        if state is not None:
            state.hidden = hidden
        return output  # type: ignore[no-any-return]  # nn.Module.__call__ is untyped


def _zeros(rnn: nn.RNNBase, batch_size: int) -> torch.Tensor:
    weight = next(rnn.parameters())
    return torch.zeros(1, batch_size, rnn.hidden_size, dtype=weight.dtype, device=weight.device)


def document_by_document(rnn: Any, x: torch.Tensor, documents: torch.Tensor) -> torch.Tensor:
    """Run `rnn` over each document of x separately, as rows of one packed sequence.

    Args:
        x: (batch, time, size); documents: (batch, time) int64, as in `Positions`.
    """
    batch, time, _ = x.shape
    rows = torch.arange(batch, device=x.device)[:, None].expand(-1, time)
    keys = torch.stack([rows.flatten(), documents.flatten()])
    _, lengths = torch.unique_consecutive(keys, dim=1, return_counts=True)
    pieces = x.flatten(0, 1).split_with_sizes(lengths.tolist())
    packed, _ = rnn(nn.utils.rnn.pack_sequence([*pieces], enforce_sorted=False))
    output, _ = nn.utils.rnn.pad_packed_sequence(packed, batch_first=True)
    real = torch.arange(output.shape[1], device=x.device) < lengths[:, None]
    return output[real].view(batch, time, -1)
