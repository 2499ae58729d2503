"""The layers of xLSTM (Beck et al. 2024): mLSTM with a matrix memory, sLSTM with recurrent gates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from common.models.config import DecoderConfig
from common.models.mixers.base import Mixer, Positions, at_least_fp32
from common.models.mixers.matrix_scan import matrix_scan, matrix_scan_flops
from common.models.mixers.options import MLSTMOptions, SLSTMOptions
from common.models.mixers.short_convolution import ShortConvolution
from common.models.mixers.slstm_scan import slstm_scan
from common.models.mixers.state import Past, RecurrentState, zeros


class MLSTM(Mixer):
    """C_t = f_t C_{t-1} + i_t v_t k_t^T, n_t = f_t n_{t-1} + i_t k_t, h_t = C_t q_t / max(|n_t^T q_t|, 1) (eq. 19 to 27).

    The input gate is an exponential. It is soft-capped, as that of xLSTM 7B (Beck et al. 2025), so that
    fp32 holds its sums and no running maximum is needed. n is one more column of C.
    """

    Options = MLSTMOptions

    def __init__(self, config: DecoderConfig, options: MLSTMOptions, layer: int) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.value_size = config.size_of_heads
        self.key_size = max(1, round(self.value_size * options.key_expansion))
        self.gate_soft_cap = options.gate_soft_cap
        keys, values = self.num_heads * self.key_size, self.num_heads * self.value_size
        self.sizes = [keys, keys, values, values]
        self.input = nn.Linear(config.hidden_size, sum(self.sizes), bias=config.bias)
        self.gates = nn.Linear(config.hidden_size, 2 * self.num_heads)
        self.norm_eps = config.norm_eps or 1e-6
        self.norm_weight = nn.Parameter(torch.ones(values))
        self.output = nn.Linear(values, config.hidden_size, bias=config.bias)

    def reset_parameters(self, std: float) -> None:
        """Constant gates: input gates of e^-10, forget gates from 0.95 to 0.998."""
        nn.init.zeros_(self.gates.weight)
        with torch.no_grad():
            update, forget = self.gates.bias.chunk(2)
            update.fill_(-10.0)
            forget.copy_(torch.linspace(3.0, 6.0, self.num_heads))

    def flops_per_token(self, time: int) -> float:
        """See Mixer.flops_per_token."""
        return matrix_scan_flops(self.num_heads, self.key_size, self.value_size + 1)

    def new_state(self, batch_size: int, max_length: int) -> RecurrentState:
        """See Mixer.new_state; `hidden` is (batch, heads, key size, value size + 1)."""
        shape = (batch_size, self.num_heads, self.key_size, self.value_size + 1)
        return RecurrentState(zeros(self.output.weight, *shape))

    def forward(
        self, x: torch.Tensor, where: Positions, state: RecurrentState | None = None
    ) -> torch.Tensor:
        """See Mixer.forward."""
        query, key, value, gate = self.input(x).split(self.sizes, dim=-1)
        query, key, value = (
            part.unflatten(-1, (self.num_heads, -1)) for part in (query, key, value)
        )
        capped = torch.tanh(at_least_fp32(self.gates(x)) / self.gate_soft_cap) * self.gate_soft_cap
        update, forget = capped.chunk(2, dim=-1)
        y, hidden = matrix_scan(
            query * self.key_size**-0.5,
            at_least_fp32(key) * update.exp()[..., None],
            F.pad(value, (0, 1), value=1.0),
            F.logsigmoid(forget),
            state=state.hidden if state else None,
            documents=where.documents,
        )
        if state is not None:
            state.hidden = hidden
        y = y[..., :-1] / y[..., -1:].abs().clamp(min=1.0)
        y = F.layer_norm(y, (self.value_size,), eps=self.norm_eps).flatten(2) * self.norm_weight
        output: torch.Tensor = self.output((y * gate.sigmoid()).to(x.dtype))
        return output


@dataclass
class SLSTMState:
    """Output, cell divided by its normaliser, and log of the normaliser, each (heads, batch, head size)."""

    hidden: torch.Tensor
    average: torch.Tensor
    log_normaliser: torch.Tensor
    inputs: Past | None = None


class SLSTM(Mixer):
    """An LSTM with exponential gates, a head at a time (Beck et al. 2024, eq. 8 to 17): a step per token.

    Its gates see its last output, so that it can track what a parallel recurrence cannot, at the price
    of a loop over the tokens.
    """

    Options = SLSTMOptions

    def __init__(self, config: DecoderConfig, options: SLSTMOptions, layer: int) -> None:
        super().__init__()
        self.num_heads, self.head_size = config.num_heads, config.hidden_size // config.num_heads
        size = config.hidden_size
        self.convolution: ShortConvolution | None = None
        if options.kernel_size:
            self.convolution = ShortConvolution(size, options.kernel_size)
        self.gates_of_input = nn.Linear(size, 2 * size, bias=False)  # input and forget gate
        self.cell_of_input = nn.Linear(size, 2 * size, bias=False)  # cell input and output gate
        shape = (self.num_heads, self.head_size, 4 * self.head_size)
        self.recurrent = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.empty(self.num_heads, 4 * self.head_size))
        self.norm_eps = config.norm_eps or 1e-6
        self.norm_weight = nn.Parameter(torch.ones(size))
        self.output = nn.Linear(size, size, bias=config.bias)

    def reset_parameters(self, std: float) -> None:
        """Zero recurrent weights; forget gates from 0.95 to 0.998 per channel."""
        nn.init.zeros_(self.recurrent)
        nn.init.zeros_(self.bias)
        with torch.no_grad():
            forget = self.bias.view(self.num_heads, 4, self.head_size)[:, 1]
            forget.copy_(torch.linspace(3.0, 6.0, self.head_size).expand_as(forget))
        if self.convolution is not None:
            self.convolution.reset_parameters()

    def new_state(self, batch_size: int, max_length: int) -> SLSTMState:
        """See Mixer.new_state."""
        zero = zeros(self.output.weight, self.num_heads, batch_size, self.head_size)
        inputs = self.convolution.new_past(batch_size) if self.convolution else None
        return SLSTMState(zero, zero, zero - torch.inf, inputs)

    def forward(
        self, x: torch.Tensor, where: Positions, state: SLSTMState | None = None
    ) -> torch.Tensor:
        """See Mixer.forward."""
        given = x
        if self.convolution is not None:
            given = F.silu(self.convolution(x, where, state.inputs if state else None))
        parts = (*x.shape[:2], 2, self.num_heads, self.head_size)
        current = state or self.new_state(x.shape[0], 0)
        hidden, average, log_normaliser = slstm_scan(
            at_least_fp32(self.gates_of_input(given)).view(parts),
            at_least_fp32(self.cell_of_input(x)).view(parts),
            at_least_fp32(self.bias),
            at_least_fp32(self.recurrent),
            current.hidden,
            current.average,
            current.log_normaliser,
            where.begins(),
        )
        if state is not None:
            state.hidden, state.average, state.log_normaliser = hidden[-1], average, log_normaliser
        y = F.layer_norm(hidden.permute(2, 0, 1, 3), (self.head_size,), eps=self.norm_eps)
        output: torch.Tensor = self.output((y.flatten(2) * self.norm_weight).to(x.dtype))
        return output
