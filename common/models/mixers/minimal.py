"""minGRU and minLSTM (Feng et al. 2024, "Were RNNs All We Needed?", appendix B), whose gates do not depend on the state."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import nn

from common.models.config import DecoderConfig
from common.models.mixers.base import Mixer, Positions, at_least_fp32
from common.models.mixers.elementwise_scan import elementwise_scan
from common.models.mixers.options import ExpansionOptions
from common.models.mixers.state import RecurrentState, zeros


def positive(x: torch.Tensor) -> torch.Tensor:
    """g of the paper: x + 1/2 where x is positive, else sigmoid(x)."""
    return torch.where(x >= 0, x + 0.5, x.sigmoid())


class _MinimalRNN(Mixer):
    Options = ExpansionOptions
    num_gates: int

    def __init__(self, config: DecoderConfig, options: ExpansionOptions, layer: int) -> None:
        super().__init__()
        self.size = round(config.hidden_size * options.expansion)
        projected = (1 + self.num_gates) * self.size
        self.input = nn.Linear(config.hidden_size, projected, bias=config.bias)
        self.output = nn.Linear(self.size, config.hidden_size, bias=config.bias)

    def new_state(self, batch_size: int, max_length: int) -> RecurrentState:
        """See Mixer.new_state; `hidden` is (batch, size)."""
        return RecurrentState(zeros(self.output.weight, batch_size, self.size))

    @abstractmethod
    def gates(
        self, candidate: torch.Tensor, *gates: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (decay, inputs) of the recurrence."""

    def forward(
        self, x: torch.Tensor, where: Positions, state: RecurrentState | None = None
    ) -> torch.Tensor:
        """See Mixer.forward."""
        parts = at_least_fp32(self.input(x)).chunk(1 + self.num_gates, dim=-1)
        decay, added = self.gates(*parts)
        begins = where.begins()
        if begins is not None:
            decay = decay.masked_fill(begins[..., None], 0)
        hidden = elementwise_scan(decay, added, state.hidden if state else None)
        if state is not None:
            state.hidden = hidden[:, -1]
        output: torch.Tensor = self.output(hidden.to(x.dtype))
        return output


class MinGRU(_MinimalRNN):
    """h_t = (1 - z_t) h_{t-1} + z_t g(W x_t), z_t = sigmoid(V x_t)."""

    num_gates = 1

    def gates(
        self, candidate: torch.Tensor, *gates: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See the class."""
        update = gates[0].sigmoid()
        return 1 - update, update * positive(candidate)


class MinLSTM(_MinimalRNN):
    """h_t = f_t h_{t-1} + i_t g(W x_t), with the gates f and i divided by their sum."""

    num_gates = 2

    def gates(
        self, candidate: torch.Tensor, *gates: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See the class."""
        forget, update = gates[0].sigmoid(), gates[1].sigmoid()
        total = forget + update
        return forget / total, update / total * positive(candidate)
