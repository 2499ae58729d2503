"""Attention maps: the attention weights of every layer and head for one text.

Kernels do not keep these weights, so they are recomputed in float64 from the inputs of each layer,
and verified against its outputs.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from common.errors import ModelError
from common.models.base import BaseLanguageModel
from common.models.decoder import Decoder
from common.models.mixers.attention import Attention
from common.training.prediction_metrics import Floats

# Relative to the largest output, between fp32 with a fused kernel and float64; a missing mask or
# scale gives an error above 0.1.
_TOLERANCE = 1e-3


class HeadStatistics(NamedTuple):
    """Statistics of a head: means over positions from 1 on (position 0 sees only itself)."""

    layer: int  # from 0, as `head`
    head: int
    itself: float  # weight on the token itself
    previous: float  # ... on the one before it
    first: float  # ... on the first of the text
    distance: float  # in tokens
    entropy_bits: float


@dataclass(frozen=True)
class AttentionMaps:
    """`weights[layer][head, t, s]` is the weight of position s in the output of position t.

    Every row sums to 1; weights for s > t are exactly 0.
    """

    weights: list[Floats]  # per layer (heads, time, time) float64

    def statistics(self) -> list[HeadStatistics]:
        return [
            _statistics(layer, head, w)
            for layer, weights in enumerate(self.weights)
            for head, w in enumerate(weights)
        ]


def _statistics(layer: int, head: int, w: Floats) -> HeadStatistics:
    positions = np.arange(len(w))
    distance = (w * (positions[:, None] - positions)).sum(axis=1)
    nats = -(w * np.log(np.where(w > 0, w, 1))).sum(axis=1)
    return HeadStatistics(
        layer,
        head,
        itself=float(w.diagonal()[1:].mean()),
        previous=float(w.diagonal(-1).mean()),
        first=float(w[1:, 0].mean()),
        distance=float(distance[1:].mean()),
        entropy_bits=float(nats[1:].mean()) / math.log(2),
    )


@torch.no_grad()
def attention_maps(model: BaseLanguageModel, input_ids: torch.Tensor) -> AttentionMaps:
    """Compute attention maps for `input_ids` (1, time) int64, of at least two tokens.

    Vaswani et al. 2017, eq. 1: softmax(Q K^T / sqrt(head size)) over the positions up to its own.
    Raises ModelError for a model without `Attention` layers (with the reason), a text longer than
    its context, and weights that do not reproduce the model's outputs.
    """
    if input_ids.ndim != 2 or input_ids.shape[0] != 1 or input_ids.shape[1] < 2:
        raise ModelError(
            f"attention takes one text of at least two tokens, got {tuple(input_ids.shape)}"
        )
    mixers = {name: m for name, m in model.named_modules() if isinstance(m, Attention)}
    if not mixers:
        raise ModelError(*_why_none(model))
    seen = _run(model, mixers, input_ids)
    weights = []
    for name, mixer in mixers.items():
        if name not in seen:
            raise ModelError(f"the model has {name}, but did not use it for this text")
        x, y = seen[name]
        layer, output = _attend(mixer, x)
        scale = max(float(y.abs().max()), 1e-6)
        if float((output - y).abs().max()) > _TOLERANCE * scale:
            raise ModelError(
                f"{name} does not compute softmax(Q K^T / sqrt(head size)) V",
                "apps/analysis/attention.py does not support it",
            )
        weights.append(layer[0].cpu().numpy())
    return AttentionMaps(weights)


def _run(
    model: BaseLanguageModel, mixers: dict[str, Attention], input_ids: torch.Tensor
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """{layer: (input, output)}, both (1, time, hidden_size) float64."""
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def keep(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
            seen[name] = inputs[0].double(), output.double()

        return hook

    hooks = [mixer.register_forward_hook(keep(name)) for name, mixer in mixers.items()]
    was_training = model.training
    model.eval()
    try:
        model(input_ids.to(model.device))
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return seen


def _attend(mixer: Attention, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights (1, heads, time, time) and output (1, time, hidden_size) of x, both float64."""
    exact = copy.deepcopy(mixer).double()
    batch, time, hidden = x.shape
    heads = (exact.num_heads, exact.num_kv_heads, exact.num_kv_heads)
    projected = exact.query_key_value(x).view(batch, time, sum(heads), exact.head_size)
    query, key, value = projected.transpose(1, 2).split_with_sizes(heads, dim=1)
    query, key = exact.query_norm(query), exact.key_norm(key)
    if exact.rope is not None:
        query, key = exact.rope(query, 0), exact.rope(key, 0)
    shared = exact.num_heads // exact.num_kv_heads
    key, value = key.repeat_interleave(shared, dim=1), value.repeat_interleave(shared, dim=1)
    future = torch.ones(time, time, dtype=torch.bool, device=x.device).triu(1)
    scores = query @ key.transpose(2, 3) / math.sqrt(exact.head_size)
    weights = scores.masked_fill(future, -math.inf).softmax(dim=-1)
    mixed = (weights @ value).transpose(1, 2).reshape(batch, time, hidden)
    return weights, exact.output(mixed)


def _why_none(model: BaseLanguageModel) -> tuple[str, str]:
    kind = type(model).__name__
    mixer = ", ".join(dict.fromkeys(model.config.mixers)) if isinstance(model, Decoder) else ""
    if mixer:
        return (
            f"this {kind} has no attention: its layers mix tokens by {mixer}, "
            "which passes a state from token to token and has no weights between two of them",
            "`surprisal` and `embeddings` work with every model",
        )
    return (
        f"{kind} has no layer of common/models/mixers/attention.py: its attention, if any, "
        "cannot be read here",
        "use a Decoder with mixer=attention",
    )
