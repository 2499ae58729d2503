"""Linear attention with decay: constant in RetNet, gated per key channel in GLA."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from common.models.config import DecoderConfig
from common.models.mixers.base import Mixer, Positions, at_least_fp32
from common.models.mixers.matrix_scan import matrix_scan, matrix_scan_flops
from common.models.mixers.options import GatedLinearOptions, RetentionOptions
from common.models.mixers.state import RecurrentState, zeros


class RetNet(Mixer):
    """Multi-scale retention (Sun et al. 2023, eq. 8) without rotations; head h decays by 1 - 2^(-5 - h)."""

    Options = RetentionOptions
    log_decay: torch.Tensor

    def __init__(self, config: DecoderConfig, options: RetentionOptions, layer: int) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.key_size = config.size_of_heads
        self.value_size = round(self.key_size * options.value_expansion)
        keys, values = self.num_heads * self.key_size, self.num_heads * self.value_size
        self.sizes = [keys, keys, values, values]
        self.input = nn.Linear(config.hidden_size, sum(self.sizes), bias=config.bias)
        self.output = nn.Linear(values, config.hidden_size, bias=config.bias)
        self.norm_eps = config.norm_eps or 1e-6
        decay = 1 - 2.0 ** (-5 - torch.arange(self.num_heads, dtype=torch.float64))
        self.register_buffer("log_decay", decay.log().float(), persistent=False)

    def flops_per_token(self, time: int) -> float:
        """See Mixer.flops_per_token."""
        return matrix_scan_flops(self.num_heads, self.key_size, self.value_size)

    def new_state(self, batch_size: int, max_length: int) -> RecurrentState:
        """See Mixer.new_state; `hidden` is (batch, heads, key size, value size)."""
        shape = (batch_size, self.num_heads, self.key_size, self.value_size)
        return RecurrentState(zeros(self.output.weight, *shape))

    def forward(
        self, x: torch.Tensor, where: Positions, state: RecurrentState | None = None
    ) -> torch.Tensor:
        """See Mixer.forward."""
        query, key, value, gate = self.input(x).split(self.sizes, dim=-1)
        query, key, value = (
            part.unflatten(-1, (self.num_heads, -1)) for part in (query, key, value)
        )
        y, hidden = matrix_scan(
            query * self.key_size**-0.5,
            key,
            value,
            self.log_decay.to(value.dtype).expand(*x.shape[:2], -1),
            state=state.hidden if state else None,
            documents=where.documents,
        )
        if state is not None:
            state.hidden = hidden
        y = F.rms_norm(y, (self.value_size,), eps=self.norm_eps).flatten(2)
        output: torch.Tensor = self.output((y * F.silu(gate)).to(x.dtype))
        return output


class GLA(Mixer):
    """Gated linear attention (Yang et al. 2023, section 4): a gate per token and key channel."""

    Options = GatedLinearOptions

    def __init__(self, config: DecoderConfig, options: GatedLinearOptions, layer: int) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.value_size = config.size_of_heads
        self.key_size = max(1, round(self.value_size * options.key_expansion))
        self.gate_divisor = options.gate_divisor
        keys, values = self.num_heads * self.key_size, self.num_heads * self.value_size
        self.sizes = [keys, keys, values, values, options.gate_rank]
        self.input = nn.Linear(config.hidden_size, sum(self.sizes), bias=config.bias)
        self.decay = nn.Linear(options.gate_rank, keys)
        self.norm = nn.RMSNorm(self.value_size, eps=config.norm_eps or 1e-6)
        self.output = nn.Linear(values, config.hidden_size, bias=config.bias)

    def flops_per_token(self, time: int) -> float:
        """See Mixer.flops_per_token."""
        return matrix_scan_flops(self.num_heads, self.key_size, self.value_size)

    def new_state(self, batch_size: int, max_length: int) -> RecurrentState:
        """See Mixer.new_state; `hidden` is (batch, heads, key size, value size)."""
        shape = (batch_size, self.num_heads, self.key_size, self.value_size)
        return RecurrentState(zeros(self.output.weight, *shape))

    def forward(
        self, x: torch.Tensor, where: Positions, state: RecurrentState | None = None
    ) -> torch.Tensor:
        """See Mixer.forward."""
        query, key, value, gate, low_rank = self.input(x).split(self.sizes, dim=-1)
        log_decay = F.logsigmoid(at_least_fp32(self.decay(low_rank))) / self.gate_divisor
        query, key, value, log_decay = (
            part.unflatten(-1, (self.num_heads, -1)) for part in (query, key, value, log_decay)
        )
        y, hidden = matrix_scan(
            query * self.key_size**-0.5,
            key,
            value,
            log_decay.clamp(
                min=-5.0
            ),  # what fp32 holds over a chunk of 16; half a millionth is left after 3
            state=state.hidden if state else None,
            documents=where.documents,
            chunk=16,
        )
        if state is not None:
            state.hidden = hidden
        y = self.norm(y).flatten(2) * F.silu(gate)
        output: torch.Tensor = self.output(y.to(x.dtype))
        return output
