"""DeltaNet, a linear attention that overwrites the value of a key, and Gated DeltaNet, which also decays."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from common.models.config import DecoderConfig
from common.models.mixers.base import Mixer, Positions, at_least_fp32
from common.models.mixers.mamba import step_bias_
from common.models.mixers.matrix_scan import matrix_scan, matrix_scan_flops
from common.models.mixers.options import DeltaOptions
from common.models.mixers.short_convolution import ShortConvolution
from common.models.mixers.state import RecurrentState, zeros


def unit(x: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    """x / sqrt(|x|^2 + eps), in fp32 or better."""
    size = x.shape[-1]
    normed: torch.Tensor = F.rms_norm(at_least_fp32(x), (size,), eps=eps / size)
    return normed * math.sqrt(1 / size)


class DeltaNet(Mixer):
    """S_t = S_{t-1} + beta_t k_t (v_t - S_{t-1}^T k_t)^T, o_t = S_t^T q_t (Yang et al. 2024, eq. 4).

    Each key head serves num_value_heads / num_key_heads value heads. With `eigenvalues: signed`, beta is
    between 0 and 2, so that a token can flip the sign of a part of the state (Grazzi et al. 2025).
    """

    Options = DeltaOptions
    num_gates = 1

    def __init__(self, config: DecoderConfig, options: DeltaOptions, layer: int) -> None:
        super().__init__()
        self.num_heads = options.num_key_heads or config.num_heads
        self.num_value_heads = options.num_value_heads or self.num_heads
        self.key_size = options.key_size or config.size_of_heads
        self.value_size = options.value_size or self.key_size
        self.most_beta = 2.0 if options.eigenvalues == "signed" else 1.0
        keys, values = self.num_heads * self.key_size, self.num_value_heads * self.value_size
        self.convolved = [2 * keys, values]
        # queries, keys and values, output gates, betas, and decays of the gated one
        self.sizes = [2 * keys + values, values, *[self.num_value_heads] * self.num_gates]
        self.input = nn.Linear(config.hidden_size, sum(self.sizes), bias=False)
        self.convolution = ShortConvolution(self.sizes[0], options.kernel_size, bias=False)
        self.norm = nn.RMSNorm(self.value_size, eps=config.norm_eps or 1e-6)
        self.output = nn.Linear(values, config.hidden_size, bias=False)

    def reset_parameters(self, std: float) -> None:
        """See Mixer.reset_parameters."""
        self.convolution.reset_parameters()

    def flops_per_token(self, time: int) -> float:
        """See Mixer.flops_per_token."""
        return matrix_scan_flops(self.num_value_heads, self.key_size, self.value_size, reads=True)

    def new_state(self, batch_size: int, max_length: int) -> RecurrentState:
        """See Mixer.new_state; `hidden` is (batch, value heads, key size, value size)."""
        shape = (batch_size, self.num_value_heads, self.key_size, self.value_size)
        hidden = zeros(self.output.weight, *shape)
        return RecurrentState(hidden, self.convolution.new_past(batch_size))

    def log_decay(self, beta: torch.Tensor, *gates: torch.Tensor) -> torch.Tensor:
        """The logarithm of the decay, (batch, time, value heads)."""
        return torch.zeros_like(beta)

    def forward(
        self, x: torch.Tensor, where: Positions, state: RecurrentState | None = None
    ) -> torch.Tensor:
        """See Mixer.forward."""
        u, gate, *gates = self.input(x).split_with_sizes(self.sizes, dim=-1)
        convolved = F.silu(self.convolution(u, where, state.inputs if state else None))
        keys, value = convolved.split_with_sizes(self.convolved, dim=-1)
        query, key = unit(keys.reshape(*x.shape[:2], 2 * self.num_heads, -1)).chunk(2, dim=2)
        if self.num_value_heads > self.num_heads:
            shared = self.num_value_heads // self.num_heads
            query, key = (part.repeat_interleave(shared, dim=2) for part in (query, key))
        value = value.reshape(*x.shape[:2], self.num_value_heads, self.value_size)
        beta = at_least_fp32(gates[0]).sigmoid()[..., None] * self.most_beta
        y, hidden = matrix_scan(
            query * self.key_size**-0.5,
            key,
            value * beta,
            self.log_decay(*gates),
            read=key,
            write=key * -beta,
            state=state.hidden if state else None,
            documents=where.documents,
        )
        if state is not None:
            state.hidden = hidden
        y = self.norm(y).flatten(2) * F.silu(at_least_fp32(gate))
        output: torch.Tensor = self.output(y.to(x.dtype))
        return output


class GatedDeltaNet(DeltaNet):
    """DeltaNet with a decay gate per token (Yang et al. 2024, "Gated Delta Networks", eq. 10)."""

    num_gates = 2

    def __init__(self, config: DecoderConfig, options: DeltaOptions, layer: int) -> None:
        super().__init__(config, options, layer)
        self.step_bias = nn.Parameter(torch.empty(self.num_value_heads))
        self.log_rates = nn.Parameter(torch.empty(self.num_value_heads))

    def reset_parameters(self, std: float) -> None:
        """As in Mamba-2: rates between 0 and 16, steps between 0.001 and 0.1."""
        super().reset_parameters(std)
        step_bias_(self.step_bias)
        with torch.no_grad():
            self.log_rates.copy_(torch.empty_like(self.log_rates).uniform_(0.01, 16).log())

    def log_decay(self, beta: torch.Tensor, *gates: torch.Tensor) -> torch.Tensor:
        """See DeltaNet.log_decay."""
        step = F.softplus(at_least_fp32(gates[0]) + self.step_bias)
        return -at_least_fp32(self.log_rates).exp() * step
