"""Mixture of experts: a router selects a few feed-forward layers for each token."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from common.models.config import DecoderConfig
from common.models.feedforwards.base import FeedForward
from common.models.mixers.base import Positions
from common.models.mixers.options import MoEOptions


class Routing(NamedTuple):
    """Statistics of the router over the tokens of one forward pass, without padding.

    Attributes:
        load: (num_experts,) int64, number of tokens per expert.
        mass: (2,), the sum over tokens of the share of scores that falls on the selected experts, and
            the number of tokens.
        loss: scalar with a gradient, the weighted auxiliary loss; 0 unless `balance` is "loss".
    """

    load: torch.Tensor
    mass: torch.Tensor
    loss: torch.Tensor


class MoE(FeedForward):
    """The sum of the top-k of `num_experts` SwiGLUs, weighted by the router, and of shared ones (Shazeer et al.
    2017; Dai et al. 2024, "DeepSeekMoE"). No token is dropped.

    `balance: loss` minimises Switch's auxiliary loss (Fedus et al. 2021, eq. 4) as well; reported losses do
    not include it. `balance: bias` adds a bias per expert to the scores that select experts, and changes it by
    `bias_step` per optimizer step towards an even load (Wang et al. 2024, arXiv 2408.15664).
    """

    Options = MoEOptions
    bias: torch.Tensor
    new_load: torch.Tensor
    new_mass: torch.Tensor
    load: torch.Tensor
    mass: torch.Tensor

    def __init__(self, config: DecoderConfig, options: MoEOptions, layer: int) -> None:
        super().__init__()
        self.options = options
        hidden, experts = config.hidden_size, options.num_experts
        self.size = config.hidden_units_of_experts()
        self.router = nn.Linear(hidden, experts, bias=False)
        # Here, because it imports the compiler (1 s, 86 MB), which models without experts do not need.
        self._run_experts = torch.compiler.disable(_run_experts)  # type: ignore[no-untyped-call]
        self.input = nn.Parameter(torch.empty(experts, 2 * self.size, hidden))
        self.output = nn.Parameter(torch.empty(experts, hidden, self.size))
        self.shared: nn.ModuleDict | None = None
        self.shared_gate: nn.Linear | None = None
        if options.num_shared and options.shared_gate:
            self.shared_gate = nn.Linear(hidden, 1, bias=False)
        if options.num_shared:
            shared = options.num_shared * (options.shared_size or self.size)
            self.shared = nn.ModuleDict(
                {
                    "input": nn.Linear(hidden, 2 * shared, bias=False),
                    "output": nn.Linear(shared, hidden, bias=False),
                }
            )
        self.register_buffer("bias", torch.empty(experts))
        # Sums of Routing.load and Routing.mass. `new_*`: of this process in the current step; `load`,
        # `mass`: of all processes since the last log.
        load, mass = torch.empty(experts, dtype=torch.int64), torch.empty(2)
        self.register_buffer("new_load", load, persistent=False)
        self.register_buffer("new_mass", mass, persistent=False)
        self.register_buffer("load", load.clone())
        self.register_buffer("mass", mass.clone())
        self.reset_buffers()

    def reset_buffers(self) -> None:
        """No bias, and no token counted."""
        for buffer in self.buffers(recurse=False):
            buffer.zero_()

    def active_parameters(self) -> int:
        """See FeedForward.active_parameters."""
        experts = self.input.numel() + self.output.numel()
        unused = experts * (self.options.num_experts - self.options.top_k)
        return super().active_parameters() - unused // self.options.num_experts

    def reset_parameters(self, std: float, output_std: float) -> None:
        """See FeedForward.reset_parameters."""
        nn.init.normal_(self.input, std=std)
        nn.init.normal_(self.output, std=output_std)
        if self.shared is not None:
            nn.init.normal_(self.shared["output"].weight, std=output_std)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor, where: Positions) -> torch.Tensor:
        """See FeedForward.forward."""
        return self.routed(x, where)[0]

    def routed(self, x: torch.Tensor, where: Positions) -> tuple[torch.Tensor, Routing]:
        """The output of `forward`, and what the router did."""
        tokens = x.flatten(0, -2)
        scores, experts, weights = self.route(tokens)
        output: torch.Tensor = self._run_experts(
            tokens, experts, weights.to(x.dtype), self.input, self.output
        )
        if self.shared is not None:
            gate, value = self.shared["input"](tokens).chunk(2, dim=-1)
            shared = self.shared["output"](F.silu(gate) * value)
            if self.shared_gate is not None:
                shared = shared * self.shared_gate(tokens).sigmoid()
            output = output + shared
        counted = torch.ones_like(experts[:, 0])
        if where.padding is not None:
            counted = (~where.padding).flatten().to(experts.dtype)
        return output.view_as(x), self._routing(scores, experts, counted)

    def route(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(tokens, hidden) -> scores (tokens, num_experts), experts and their weights (tokens, top_k).

        Computed in fp32 or better, because rounding changes which experts are selected.
        """
        options = self.options
        with torch.autocast(tokens.device.type, enabled=False):
            dtype = torch.promote_types(tokens.dtype, torch.float32)
            logits = F.linear(tokens.to(dtype), self.router.weight.to(dtype))
        scores = logits.softmax(dim=-1) if options.scores == "softmax" else logits.sigmoid()
        ranked = scores.detach() + self.bias
        if options.num_groups > 1:
            ranked = self._within_groups(ranked)
        experts = ranked.topk(options.top_k, dim=-1).indices
        weights = scores.gather(-1, experts)
        if options.normalize:
            weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
        return scores, experts, weights * options.scale

    def _within_groups(self, ranked: torch.Tensor) -> torch.Tensor:
        """Mask all but the `top_groups` groups with the highest score: the sum of their two highest (DeepSeek-AI
        2024, "V3", 2.1.2), or their highest ("V2", 2.2.2)."""
        grouped = ranked.view(len(ranked), self.options.num_groups, -1)
        counted = 2 if self.options.group_score == "top2_sum" else 1
        best = grouped.topk(min(counted, grouped.shape[-1]), dim=-1).values.sum(dim=-1)
        kept = torch.zeros_like(best, dtype=torch.bool)
        kept = kept.scatter(-1, best.topk(self.options.top_groups, dim=-1).indices, True)
        return grouped.masked_fill(~kept[..., None], -torch.inf).flatten(-2)

    def _routing(
        self, scores: torch.Tensor, experts: torch.Tensor, counted: torch.Tensor
    ) -> Routing:
        """`counted`: (tokens,) int64, 0 for padding, else 1. Nothing here waits for a GPU."""
        load = counted.new_zeros(self.options.num_experts)
        load = load.scatter_add(0, experts.flatten(), counted.repeat_interleave(experts.shape[1]))
        # Sums, not products of matrices: autocast would round those to bf16.
        shares = scores / scores.sum(dim=-1, keepdim=True) * counted[:, None]
        mass, number = shares.detach().gather(-1, experts).sum(), counted.sum().to(scores.dtype)
        loss = scores.new_zeros(())
        if self.options.balance == "loss":
            mean_share = shares.sum(dim=0) / number.clamp(min=1)
            mean_load = load.to(scores.dtype) / load.sum().clamp(min=1)
            loss = self.options.num_experts * (mean_load * mean_share).sum()
        return Routing(load, torch.stack([mass, number]), loss * self.options.loss_weight)

    @torch.no_grad()
    def count(self, routing: Routing) -> None:
        """Count a forward pass of this process towards the current step."""
        self.new_load += routing.load
        self.new_mass += routing.mass

    @torch.no_grad()
    def end_step(self, total: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Update the bias from the load of the step; `total` sums a tensor over all processes, in place."""
        load, mass = total(self.new_load), total(self.new_mass)
        if self.options.balance == "bias":
            distance = load.to(self.bias.dtype).mean() - load
            self.bias += self.options.bias_step * torch.sign(distance)
        self.load += load
        self.mass += mass
        self.new_load.zero_()
        self.new_mass.zero_()

    @torch.no_grad()
    def metrics(self) -> dict[str, float]:
        """Balance of the load since the last call; empty if no token was routed."""
        load, mass = self.load.double(), self.mass.clone()
        self.load.zero_()
        self.mass.zero_()
        if not load.sum():
            return {}
        share = load / load.sum()
        entropy = -(share * share.clamp(min=1e-30).log2()).sum()
        return {
            "excess_load": float(share.max() * len(share) - 1),
            "load_entropy_bits": float(entropy),
            "dead_experts": float((load == 0).sum()),
            "top_k_mass": float(mass[0] / mass[1]),
        }


def _run_experts(
    tokens: torch.Tensor,
    experts: torch.Tensor,
    weights: torch.Tensor,
    input_weights: torch.Tensor,
    output_weights: torch.Tensor,
) -> torch.Tensor:
    """The weighted sum of the experts of each token, (tokens, hidden).

    Tokens are sorted by expert, so that each expert is one matrix product. On CPUs this is as fast as
    `F.grouped_mm`, which does not support autocast.
    """
    order = experts.flatten().argsort(stable=True)
    source = order // experts.shape[1]
    counts = torch.bincount(experts.flatten(), minlength=len(input_weights)).tolist()
    parts = []
    for mine, into, out in zip(
        tokens[source].split_with_sizes(counts), input_weights, output_weights, strict=True
    ):
        gate, value = F.linear(mine, into).chunk(2, dim=-1)
        parts.append(F.linear(F.silu(gate) * value, out))
    outputs = torch.cat(parts) * weights.flatten()[order, None]
    return torch.zeros_like(tokens, dtype=outputs.dtype).index_add(0, source, outputs)
