"""RWKV-7: a generalised delta rule with a decay, a rate and a removal key per channel."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from common.models.config import DecoderConfig
from common.models.mixers.base import Mixer, ParameterRole, Positions, at_least_fp32
from common.models.mixers.delta_net import unit
from common.models.mixers.matrix_scan import matrix_scan, matrix_scan_flops
from common.models.mixers.options import RWKV7Options
from common.models.mixers.short_convolution import taps
from common.models.mixers.state import Past, RecurrentState, zeros

_FASTEST = (
    -0.6065306597126334
)  # -e^-0.5: log decays are above it, so a chunk of 64 stays within fp32
_MIXED = ("receptance", "decay", "key", "value", "rate", "gate")


class RWKV7(Mixer):
    """S_t = S_{t-1} (diag(w_t) - k^_t (a_t k^_t)^T) + v_t k_t^T (Peng et al. 2025, eq. 17), without the
    residual of the first layer's values.

    What it computes from is a mixture of each token and the one before it, by a constant per channel.
    """

    Options = RWKV7Options

    def __init__(self, config: DecoderConfig, options: RWKV7Options, layer: int) -> None:
        super().__init__()
        size = config.hidden_size
        self.num_heads, self.head_size = config.num_heads, size // config.num_heads
        self.shift = nn.Parameter(torch.empty(len(_MIXED), size))
        self.receptance, self.key, self.value = (
            nn.Linear(size, size, bias=False) for _ in range(3)
        )
        self.decay = _LowRank(size, options.decay_rank, torch.tanh, bias=True)
        self.rate = _LowRank(size, options.rate_rank, lambda x: x, bias=True)
        self.gate = _LowRank(size, options.gate_rank, torch.sigmoid, bias=False)
        self.removed = nn.Parameter(torch.empty(size))  # k_k of the paper
        self.replaced = nn.Parameter(torch.empty(size))  # k_a
        self.bonus = nn.Parameter(torch.empty(self.num_heads, self.head_size))  # r_k
        self.norm = nn.GroupNorm(self.num_heads, size, eps=64e-5)
        self.output = nn.Linear(size, size, bias=False)

    def reset_parameters(self, std: float) -> None:
        """Mix tokens in equal parts; decays range from slow to fast channels."""
        nn.init.constant_(self.shift, 0.5)
        nn.init.constant_(self.removed, 0.85)
        nn.init.ones_(self.replaced)
        nn.init.zeros_(self.bonus)
        with torch.no_grad():
            self.decay.up.bias.copy_(torch.linspace(-6.0, 1.0, len(self.decay.up.bias)))

    def parameter_roles(self) -> dict[str, ParameterRole]:
        """See Mixer.parameter_roles."""
        return {"shift": "vector", "bonus": "vector"}

    def flops_per_token(self, time: int) -> float:
        """See Mixer.flops_per_token."""
        return matrix_scan_flops(self.num_heads, self.head_size, self.head_size, reads=True)

    def new_state(self, batch_size: int, max_length: int) -> RecurrentState:
        """See Mixer.new_state; `hidden` is (batch, heads, head size, head size)."""
        weight = self.output.weight
        hidden = zeros(weight, batch_size, self.num_heads, self.head_size, self.head_size)
        return RecurrentState(hidden, Past(zeros(weight, batch_size, 1, weight.shape[0])))

    def forward(
        self, x: torch.Tensor, where: Positions, state: RecurrentState | None = None
    ) -> torch.Tensor:
        """See Mixer.forward."""
        before, _ = taps(x, 2, where, state.inputs if state else None)
        change = before - x
        r, w, k, v, a, g = (torch.addcmul(x, change, part.to(x.dtype)) for part in self.shift)
        receptance, key, value = self.receptance(r), self.key(k), self.value(v)
        log_decay = _FASTEST * at_least_fp32(self.decay(w)).sigmoid()
        rate = at_least_fp32(self.rate(a)).sigmoid()
        removed = unit(self._heads(key * self.removed), eps=1e-24)
        key = at_least_fp32(key) * (1 + (rate - 1) * self.replaced)
        receptance, key, value, log_decay, rate = (
            self._heads(at_least_fp32(part)) for part in (receptance, key, value, log_decay, rate)
        )
        y, hidden = matrix_scan(
            receptance,
            key,
            value,
            log_decay,
            read=-removed * torch.exp(-log_decay),  # the scan reads after the decay
            write=removed * rate,
            state=state.hidden if state else None,
            documents=where.documents,
        )
        if state is not None:
            state.hidden = hidden
        y = F.layer_norm(y, (self.head_size,), eps=self.norm.eps).flatten(2)  # a group per head
        y = torch.addcmul(self.norm.bias, y, self.norm.weight)
        bonus = (receptance * key * self.bonus).sum(dim=-1, keepdim=True) * value
        y = (y + bonus.flatten(2)) * self.gate(g)
        output: torch.Tensor = self.output(y.to(x.dtype))
        return output

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(*x.shape[:2], self.num_heads, self.head_size)


class _LowRank(nn.Module):
    """up(activation(down(x)))"""

    def __init__(
        self, size: int, rank: int, activation: Callable[[torch.Tensor], torch.Tensor], bias: bool
    ) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(size, rank, bias=False), nn.Linear(rank, size, bias=bias)
        self.activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.up(self.activation(self.down(x)))
        return output
