"""Mamba: a state-space model whose steps depend on the token (Gu and Dao 2023, section 3), and Mamba-2."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from common.models.config import DecoderConfig
from common.models.mixers.base import Mixer, ParameterRole, Positions, at_least_fp32
from common.models.mixers.matrix_scan import matrix_scan, matrix_scan_flops
from common.models.mixers.options import Mamba2Options, MambaOptions
from common.models.mixers.selective_scan import selective_scan
from common.models.mixers.short_convolution import ShortConvolution
from common.models.mixers.state import RecurrentState, zeros

SHORTEST_STEP, LONGEST_STEP = 1e-3, 0.1


def step_bias_(bias: torch.Tensor) -> None:
    """Initialise `bias` so that softplus(bias) is log-uniform between the shortest and the longest step."""
    low, high = math.log(SHORTEST_STEP), math.log(LONGEST_STEP)
    step = torch.exp(torch.rand_like(bias) * (high - low) + low).clamp(min=1e-4)
    with torch.no_grad():
        bias.copy_(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus


class Mamba(Mixer):
    """h_t = exp(d_t A) h_{t-1} + d_t B_t x_t, y_t = C_t h_t + D x_t, with `state_size` states per channel."""

    Options = MambaOptions

    def __init__(self, config: DecoderConfig, options: MambaOptions, layer: int) -> None:
        super().__init__()
        self.size = round(config.hidden_size * options.expansion)
        self.state_size = options.state_size
        self.step_rank = options.step_rank or -(-config.hidden_size // 16)
        self.input = nn.Linear(config.hidden_size, 2 * self.size, bias=config.bias)
        self.convolution = ShortConvolution(self.size, options.kernel_size)
        self.parameters_of_x = nn.Linear(
            self.size, self.step_rank + 2 * self.state_size, bias=False
        )
        self.step = nn.Linear(self.step_rank, self.size, bias=True)
        self.log_rates = nn.Parameter(torch.empty(self.size, self.state_size))
        self.skip = nn.Parameter(torch.empty(self.size))
        self.output = nn.Linear(self.size, config.hidden_size, bias=config.bias)

    def reset_parameters(self, std: float) -> None:
        """S4D-real: the rates of a channel are 1, 2, ..., state_size."""
        rates = torch.arange(1, self.state_size + 1, dtype=self.log_rates.dtype)
        with torch.no_grad():
            self.log_rates.copy_(rates.log().expand_as(self.log_rates))
        nn.init.ones_(self.skip)
        step_bias_(self.step.bias)
        nn.init.uniform_(self.step.weight, -(self.step_rank**-0.5), self.step_rank**-0.5)
        self.convolution.reset_parameters()

    def parameter_roles(self) -> dict[str, ParameterRole]:
        """See Mixer.parameter_roles."""
        return {"log_rates": "vector"}

    def flops_per_token(self, time: int) -> float:
        """See Mixer.flops_per_token."""
        return 6 * self.size * self.state_size  # decay, add and read

    def new_state(self, batch_size: int, max_length: int) -> RecurrentState:
        """See Mixer.new_state; `hidden` is (batch, state_size, channels)."""
        hidden = zeros(self.output.weight, batch_size, self.state_size, self.size)
        return RecurrentState(hidden, self.convolution.new_past(batch_size))

    def forward(
        self, x: torch.Tensor, where: Positions, state: RecurrentState | None = None
    ) -> torch.Tensor:
        """See Mixer.forward."""
        u, gate = self.input(x).chunk(2, dim=-1)
        convolved = F.silu(self.convolution(u, where, state.inputs if state else None))
        parts = self.parameters_of_x(convolved)
        step, b, c = parts.split([self.step_rank, self.state_size, self.state_size], dim=-1)
        y, hidden = selective_scan(
            convolved,
            F.softplus(self.step(step)),
            at_least_fp32(self.log_rates).exp().T,
            b,
            c,
            begins=where.begins(),
            state=state.hidden if state else None,
        )
        if state is not None:
            state.hidden = hidden
        y = torch.addcmul(y, self.skip, convolved)
        output: torch.Tensor = self.output((y * F.silu(gate)).to(x.dtype))
        return output


class Mamba2(Mixer):
    """Mamba with one decay per head; its state is a matrix per head (Dao and Gu 2024, section 7.1)."""

    Options = Mamba2Options

    def __init__(self, config: DecoderConfig, options: Mamba2Options, layer: int) -> None:
        super().__init__()
        self.size = round(config.hidden_size * options.expansion)
        self.head_size = min(options.head_size, self.size)
        self.num_heads, self.num_groups = self.size // self.head_size, options.num_groups
        self.state_size = options.state_size
        self.convolved = self.size + 2 * self.num_groups * self.state_size
        projected = (
            self.size + self.convolved + self.num_heads
        )  # the gate, what is convolved, the steps
        self.input = nn.Linear(config.hidden_size, projected, bias=config.bias)
        self.convolution = ShortConvolution(
            self.convolved, options.kernel_size, options.convolution_bias
        )
        self.step_limits = (options.min_step, options.max_step)
        self.step_bias = nn.Parameter(torch.empty(self.num_heads))
        self.log_rates = nn.Parameter(torch.empty(self.num_heads))
        self.skip = nn.Parameter(torch.empty(self.num_heads))
        self.norm_eps = config.norm_eps or 1e-6
        self.norm_weight = nn.Parameter(torch.ones(self.size))
        self.output = nn.Linear(self.size, config.hidden_size, bias=config.bias)

    def reset_parameters(self, std: float) -> None:
        """Rates between 1 and 16, as in the authors' code."""
        step_bias_(self.step_bias)
        with torch.no_grad():
            self.log_rates.copy_(torch.empty_like(self.log_rates).uniform_(1, 16).log())
        nn.init.ones_(self.skip)
        self.convolution.reset_parameters()

    def flops_per_token(self, time: int) -> float:
        """See Mixer.flops_per_token."""
        return matrix_scan_flops(self.num_heads, self.state_size, self.head_size)

    def new_state(self, batch_size: int, max_length: int) -> RecurrentState:
        """See Mixer.new_state; `hidden` is (batch, heads, state_size, head_size)."""
        shape = (batch_size, self.num_heads, self.state_size, self.head_size)
        hidden = zeros(self.output.weight, *shape)
        return RecurrentState(hidden, self.convolution.new_past(batch_size))

    def forward(
        self, x: torch.Tensor, where: Positions, state: RecurrentState | None = None
    ) -> torch.Tensor:
        """See Mixer.forward."""
        parts = [self.size, self.convolved, self.num_heads]
        gate, u, step = self.input(x).split(parts, dim=-1)
        convolved = F.silu(self.convolution(u, where, state.inputs if state else None))
        keys = self.num_groups * self.state_size
        value, key, query = convolved.split_with_sizes([self.size, keys, keys], dim=-1)
        value = value.reshape(*x.shape[:2], self.num_heads, self.head_size)
        query, key = self._for_each_head(query), self._for_each_head(key)
        step = F.softplus(at_least_fp32(step) + self.step_bias)
        if self.step_limits != (0.0, None):
            step = step.clamp(*self.step_limits)
        y, hidden = matrix_scan(
            query,
            key,
            value * step[..., None],
            -step * at_least_fp32(self.log_rates).exp(),
            state=state.hidden if state else None,
            documents=where.documents,
        )
        if state is not None:
            state.hidden = hidden
        y = torch.addcmul(y, self.skip[:, None], value).flatten(2) * F.silu(at_least_fp32(gate))
        grouped = y.view(*y.shape[:2], self.num_groups, -1)
        y = F.rms_norm(grouped, grouped.shape[-1:], eps=self.norm_eps).flatten(2) * self.norm_weight
        output: torch.Tensor = self.output(y.to(x.dtype))
        return output

    def _for_each_head(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, time, groups * state_size) -> (batch, time, heads, state_size)"""
        grouped = x.reshape(*x.shape[:2], self.num_groups, 1, self.state_size)
        return grouped.expand(-1, -1, -1, self.num_heads // self.num_groups, -1).flatten(2, 3)
