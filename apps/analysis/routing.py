"""Routing: the experts that each token of a text is sent to, in every mixture-of-experts layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from common.data.token_files import Tokens
from common.errors import DataError, UsageError
from common.models.base import BaseLanguageModel
from common.models.decoder import Decoder
from common.models.feedforwards.moe import MoE
from common.training.prediction_metrics import Counts, Floats

_TOKENS_OF_BATCH = 2**14  # per forward pass
_Route = tuple[torch.Tensor, torch.Tensor]


class LoadStatistics(NamedTuple):
    """Balance of the load of a layer."""

    layer: int  # of the model, from 0
    experts: int
    top_k: int
    tokens: int
    even_load: float  # tokens x top_k / experts
    max_load: int
    excess_load: float  # max load / mean - 1
    entropy_bits: float  # of the load; log2(experts) is even
    dead_experts: int  # without a token of this text


@dataclass(frozen=True)
class LayerRouting:
    """`experts[t]` are the experts of token t, by descending weight; `weights[t]` are their weights."""

    layer: int
    num_experts: int
    experts: Counts  # (tokens, top_k)
    weights: Floats  # (tokens, top_k)

    @property
    def load(self) -> Counts:
        """(num_experts,) number of tokens of each expert; their sum is tokens x top_k."""
        return np.bincount(self.experts.ravel(), minlength=self.num_experts).astype(np.int64)

    def by_class(self, classes: Counts, num_classes: int) -> Counts:
        """(num_experts, num_classes) tokens of each class that an expert receives.

        Args:
            classes: (tokens,) the class of each token, such as its id.
        """
        cells = self.experts * num_classes + classes[:, None]
        counts = np.bincount(cells.ravel(), minlength=self.num_experts * num_classes)
        return counts.reshape(self.num_experts, num_classes).astype(np.int64)

    def statistics(self) -> LoadStatistics:
        """See LoadStatistics."""
        load, mean = self.load, self.experts.size / self.num_experts
        share = load[load > 0] / load.sum()
        return LoadStatistics(
            self.layer,
            self.num_experts,
            top_k=self.experts.shape[1],
            tokens=len(self.experts),
            even_load=mean,
            max_load=int(load.max()),
            excess_load=float(load.max() / mean - 1),
            entropy_bits=float(-(share * np.log2(share)).sum()) + 0.0,  # not -0.0
            dead_experts=int((load == 0).sum()),
        )


@dataclass(frozen=True)
class Routing:
    """The routing of a text: its ids (tokens,) and every layer with experts."""

    ids: Counts
    layers: list[LayerRouting]


@torch.no_grad()
def trace_routing(
    model: BaseLanguageModel, tokens: Tokens | Counts, *, context_length: int
) -> Routing:
    """Route every token, given those before it in its window.

    Args:
        tokens: (tokens,) ids, at least one.
        context_length: tokens per window; windows are consecutive.
    Raises UsageError for a model without experts, and ModelError if it does not accept such a window.
    """
    layers = _moe_layers(model)
    ids = np.asarray(tokens).astype(np.int64)
    if not len(ids):
        raise DataError("the text has no tokens: there is nothing to route")
    was_training = model.training
    model.eval()
    try:
        with _routes_of(layers) as routes:
            for batch in _windows(ids, context_length):
                model(batch.to(model.device))
    finally:
        model.train(was_training)
    return Routing(ids, [_joined(i, moe, routes[i]) for i, moe in layers.items()])


def _moe_layers(model: BaseLanguageModel) -> dict[int, MoE]:
    """{layer: its experts}, layers counted from 0."""
    kind = type(model).__name__
    hint = "train one with model.feedforward=moe (docs/models.md)"
    if not isinstance(model, Decoder):
        raise UsageError(f"{kind} has no experts: routing is read from a Decoder", hint)
    feedforwards = [block.feedforward for block in model.blocks]
    layers = {i: layer for i, layer in enumerate(feedforwards) if isinstance(layer, MoE)}
    if not layers:
        used = ", ".join(dict.fromkeys(model.config.feedforward_kinds))
        raise UsageError(f"this {kind} has no experts: its feed-forward layers are {used}", hint)
    return layers


def _windows(ids: Counts, context_length: int) -> Iterator[torch.Tensor]:
    """Batches (rows, time) int64 that contain every token once, in order; the last one may be shorter."""
    rows = max(1, _TOKENS_OF_BATCH // context_length)
    whole = len(ids) // context_length * context_length
    if whole:
        windows = torch.from_numpy(ids[:whole]).view(-1, context_length)
        yield from torch.split(windows, rows)
    if whole < len(ids):
        yield torch.from_numpy(ids[None, whole:])


@contextmanager
def _routes_of(layers: dict[int, MoE]) -> Iterator[dict[int, list[_Route]]]:
    """Collect the experts and their weights, both (tokens, top_k), of every forward pass."""
    routes: dict[int, list[_Route]] = {layer: [] for layer in layers}

    def keep(layer: int) -> Callable[[MoE, tuple[torch.Tensor, ...]], None]:
        def hook(moe: MoE, inputs: tuple[torch.Tensor, ...]) -> None:
            _, experts, weights = moe.route(inputs[0].flatten(0, -2))
            routes[layer].append((experts.cpu(), weights.double().cpu()))

        return hook

    hooks = [moe.register_forward_pre_hook(keep(layer)) for layer, moe in layers.items()]
    try:
        yield routes
    finally:
        for hook in hooks:
            hook.remove()


def _joined(layer: int, moe: MoE, routes: list[_Route]) -> LayerRouting:
    experts, weights = (torch.cat(parts) for parts in zip(*routes, strict=True))
    # The router sorts by the scores that select experts, which its balancing bias changes.
    weights, order = weights.sort(dim=1, descending=True, stable=True)
    experts = experts.gather(1, order)
    return LayerRouting(layer, moe.options.num_experts, experts.numpy(), weights.numpy())
