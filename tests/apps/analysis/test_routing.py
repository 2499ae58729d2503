"""Routing against the router written out, and against what the model itself counts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from apps.analysis.routing import LayerRouting, trace_routing
from apps.analysis.routing_page import top_tokens
from common.errors import DataError, ModelError, UsageError
from common.models import Decoder
from common.models.feedforwards.moe import MoE
from common.models.mixers.base import Positions
from projects.custom_transformer.model import CustomTransformer

IDS = np.random.default_rng(0).integers(0, 11, 37)
OPTIONS: list[dict[str, Any]] = [
    {"num_experts": 5, "top_k": 2},
    {"num_experts": 4, "top_k": 1, "num_shared": 1, "normalize": False},
    {"num_experts": 8, "top_k": 3, "scores": "sigmoid", "balance": "bias", "scale": 2.5},
    {"num_experts": 8, "top_k": 2, "num_groups": 4, "top_groups": 2},
]


def model_of(options: dict[str, Any], **shape: Any) -> Decoder:
    torch.manual_seed(3)
    sizes = {"num_layers": 3, "num_heads": 2, "hidden_size": 16, "context_length": 16}
    feedforwards = {"feedforwards": "moe swiglu moe", "options": {"moe": options}}
    model = Decoder(11, **{**sizes, **feedforwards, **shape})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
        for layer in model.experts:
            layer.bias.copy_(torch.randn_like(layer.bias) * 0.1)
    return model.eval()


def inputs_of_experts(model: Decoder, ids: np.ndarray) -> dict[int, torch.Tensor]:
    """{layer: (time, hidden_size)}, by stepping through the blocks."""
    x, found = model.token_embedding(torch.from_numpy(ids)[None]), {}
    assert model.position_embedding is not None
    x = x + model.position_embedding(torch.arange(len(ids)))
    for index, block in enumerate(model.blocks):
        x = x + block.mixer(block.mixer_norm(x), Positions())  # type: ignore[operator]  # nn.Module
        normed = block.feedforward_norm(x)  # type: ignore[operator]  # nn.Module
        if isinstance(block.feedforward, MoE):
            found[index] = normed[0]
        x = x + block.feedforward(normed, Positions())  # type: ignore[operator]  # nn.Module
    return found


def written_out(layer: MoE, x: np.ndarray) -> tuple[list[int], list[float]]:
    """Experts and weights of one token x (hidden_size,), by descending weight."""
    options, logits = layer.options, layer.router.weight.detach().double().numpy() @ x
    if options.scores == "softmax":
        scores = np.exp(logits - logits.max())
        scores /= scores.sum()
    else:
        scores = 1 / (1 + np.exp(-logits))
    ranked = scores + layer.bias.double().numpy()
    groups = np.split(np.arange(len(scores)), options.num_groups)
    best = sorted(groups, key=lambda group: -sum(sorted(ranked[group])[-2:]))
    allowed = {int(i) for group in best[: options.top_groups] for i in group}
    chosen = sorted(allowed, key=lambda i: -ranked[i])[: options.top_k]
    total = sum(scores[i] for i in chosen) if options.normalize else 1.0
    weights = {i: options.scale * scores[i] / total for i in chosen}
    order = sorted(chosen, key=lambda i: -weights[i])
    return order, [weights[i] for i in order]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@torch.no_grad()
def test_experts_and_weights_are_those_of_the_router_written_out(options: dict[str, Any]) -> None:
    model = model_of(options)
    found = trace_routing(model, IDS, context_length=16)
    assert [layer.layer for layer in found.layers] == [0, 2]
    windows = [inputs_of_experts(model, IDS[start : start + 16]) for start in (0, 16, 32)]
    for layer in found.layers:
        moe = model.blocks[layer.layer].feedforward
        assert isinstance(moe, MoE)
        x = torch.cat([window[layer.layer] for window in windows]).double().numpy()
        for place in range(len(IDS)):
            experts, weights = written_out(moe, x[place])
            assert layer.experts[place].tolist() == experts
            np.testing.assert_allclose(layer.weights[place], weights, atol=1e-5)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_loads_are_what_the_model_counts_and_sum_to_tokens_times_top_k(
    options: dict[str, Any],
) -> None:
    model = model_of(options)
    found = trace_routing(model, IDS[:16], context_length=16)
    model.train()
    row = torch.from_numpy(IDS[:16])[None]
    model(row, labels=row)  # counts
    for layer, counted in zip(found.layers, model.experts, strict=True):
        assert layer.load.tolist() == counted.new_load.tolist()
        assert layer.load.sum() == 16 * options["top_k"]
        statistics, metrics = layer.statistics(), {}
        counted.end_step(lambda total: total)
        metrics = counted.metrics()
        assert statistics.excess_load == pytest.approx(metrics["excess_load"])
        assert statistics.entropy_bits == pytest.approx(metrics["load_entropy_bits"])
        assert statistics.dead_experts == metrics["dead_experts"]
    assert not any(layer._forward_pre_hooks for layer in model.experts) and model.training


def test_every_token_is_routed_once_whatever_the_windows() -> None:
    model = model_of(OPTIONS[0])
    for length, context in ((1, 16), (16, 16), (37, 5), (37, 1)):
        for layer in trace_routing(model, IDS[:length], context_length=context).layers:
            assert layer.experts.shape == layer.weights.shape == (length, 2)
            assert layer.load.sum() == 2 * length


def test_statistics_and_classes_of_a_routing_that_is_known() -> None:
    experts = np.array([[0, 1], [0, 1], [0, 2], [0, 1]])
    layer = LayerRouting(7, 4, experts, np.full((4, 2), 0.5))
    found = layer.statistics()
    assert layer.load.tolist() == [4, 3, 1, 0]
    assert found[:7] == (7, 4, 2, 4, 2.0, 4, 1.0) and found.dead_experts == 1
    expected = -sum(p * math.log2(p) for p in (4 / 8, 3 / 8, 1 / 8))
    assert found.entropy_bits == pytest.approx(expected)
    classes = np.array([0, 1, 1, 2])
    assert layer.by_class(classes, 3).tolist() == [[1, 2, 1], [1, 1, 1], [0, 1, 0], [0, 0, 0]]
    # An even split sends each expert half of the tokens of every word.
    assert top_tokens(layer, classes, 3) == [[[1, 2], [0, 1], [2, 1]], [[0, 1], [2, 1]], [], []]


def test_models_without_experts_are_refused_with_the_reason() -> None:
    with pytest.raises(UsageError, match="no experts: its feed-forward layers are mlp") as error:
        trace_routing(Decoder(11, num_layers=1, num_heads=2, hidden_size=8), IDS, context_length=16)
    assert "model.feedforward=moe" in error.value.hint
    custom = CustomTransformer(11, num_layers=1, num_heads=2, hidden_size=8, context_length=16)
    with pytest.raises(UsageError, match="CustomTransformer has no experts"):
        trace_routing(custom, IDS, context_length=16)
    with pytest.raises(DataError, match="no tokens"):
        trace_routing(model_of(OPTIONS[0]), IDS[:0], context_length=16)
    with pytest.raises(ModelError, match="17 tokens are more than the model's context of 16"):
        trace_routing(model_of(OPTIONS[0]), IDS, context_length=17)
