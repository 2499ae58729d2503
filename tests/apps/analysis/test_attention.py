"""Attention maps against a softmax written out in float64, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from apps.analysis.attention import AttentionMaps, attention_maps
from common.errors import ModelError
from common.models import Decoder
from common.models.mixers.attention import Attention
from common.models.mixers.base import Positions
from projects.custom_transformer.model import CustomTransformer

SHAPES: list[dict[str, Any]] = [
    {"preset": "gpt2"},
    {"preset": "llama"},
    {"preset": "llama", "num_kv_heads": 2, "qk_norm": True},
    {"preset": "gpt2", "positions": "none", "bias": False},
]
IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6, 5]])


def model_of(**shape: Any) -> Decoder:
    torch.manual_seed(2)
    options = {"num_layers": 2, "num_heads": 4, "hidden_size": 32, "context_length": 16}
    model = Decoder(11, **{**options, **shape})
    with torch.no_grad():  # so that no two weights are nearly the same
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model.eval()


def written_out(mixer: Attention, x: np.ndarray) -> np.ndarray:
    """(heads, time, time): loops over heads and positions, rotations as complex numbers."""
    time, size = len(x), mixer.head_size
    projection = mixer.query_key_value
    bias = 0 if projection.bias is None else projection.bias.detach().double().numpy()
    columns = x @ projection.weight.detach().double().numpy().T + bias
    heads, shared = mixer.num_heads, mixer.num_heads // mixer.num_kv_heads

    def prepared(first: int, norm: Any, time_step: int) -> np.ndarray:
        v = columns[time_step, first * size : (first + 1) * size]
        if isinstance(norm, torch.nn.RMSNorm):
            v = v / np.sqrt(np.mean(v**2) + 1e-6) * norm.weight.detach().double().numpy()
        if mixer.rope is not None:
            half = size // 2
            angles = time_step * 10_000.0 ** (-np.arange(half) * 2 / size)
            turned = (v[:half] + 1j * v[half:]) * np.exp(1j * angles)
            v = np.concatenate([turned.real, turned.imag])
        return v

    weights = np.zeros((heads, time, time))
    for head in range(heads):
        for t in range(time):
            query = prepared(head, mixer.query_norm, t)
            scores = [
                query @ prepared(heads + head // shared, mixer.key_norm, s) / math.sqrt(size)
                for s in range(t + 1)
            ]
            exponents = np.exp(np.array(scores) - max(scores))
            weights[head, t, : t + 1] = exponents / exponents.sum()
    return weights


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_weights_are_those_of_a_softmax_written_out(shape: dict[str, Any]) -> None:
    model = model_of(**shape)
    inputs: list[np.ndarray] = []
    for block in model.blocks:
        block.mixer.register_forward_pre_hook(  # type: ignore[union-attr, operator]  # nn.Module
            lambda _, arguments: inputs.append(arguments[0][0].detach().double().numpy())
        )
    maps = attention_maps(model, IDS)
    assert len(maps.weights) == 2
    for block, x, found in zip(model.blocks, inputs, maps.weights, strict=True):
        assert found.shape == (4, 9, 9) and found.dtype == np.float64
        expected = written_out(block.mixer, x)  # type: ignore[arg-type]  # nn.Module
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_future_has_exactly_no_weight_and_every_row_sums_to_one() -> None:
    for found in attention_maps(model_of(preset="llama"), IDS).weights:
        later = np.triu(np.ones((9, 9), dtype=bool), 1)
        assert (found[:, later] == 0).all() and (found[:, ~later] > 0).all()
        np.testing.assert_allclose(found.sum(axis=-1), 1, atol=1e-12)


def test_the_model_is_left_as_it_was() -> None:
    model = model_of().train()
    attention_maps(model, IDS)
    mixers = [block.mixer for block in model.blocks]
    assert model.training and not any(mixer._forward_hooks for mixer in mixers)  # type: ignore[union-attr]  # nn.Module
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


class Windowed(Attention):
    """Each position sees itself and the one before it: not what the analysis computes."""

    def forward(self, x: torch.Tensor, where: Positions, state: Any = None) -> torch.Tensor:
        pairs = [x[:, max(0, t - 1) : t + 1] for t in range(x.shape[1])]
        attended = [super(Windowed, self).forward(pair, Positions()) for pair in pairs]
        return torch.cat([pair[:, -1:] for pair in attended], dim=1)


def test_a_layer_that_computes_something_else_is_refused() -> None:
    model = model_of(preset="gpt2", positions="none")
    model.blocks[1].mixer.__class__ = Windowed  # type: ignore[union-attr, assignment]  # nn.Module
    with pytest.raises(ModelError, match=r"blocks\.1\.mixer does not compute"):
        attention_maps(model, IDS)


def test_models_without_attention_are_refused_with_the_reason() -> None:
    with pytest.raises(ModelError, match="no attention: its layers mix tokens by lstm"):
        attention_maps(Decoder(11, preset="char_lstm", hidden_size=8), IDS)
    custom = CustomTransformer(11, num_layers=1, num_heads=2, hidden_size=8, context_length=16)
    with pytest.raises(ModelError, match="CustomTransformer has no layer of"):
        attention_maps(custom, IDS)


def test_texts_that_are_too_short_or_too_long_are_refused() -> None:
    model = model_of()
    with pytest.raises(ModelError, match="at least two tokens"):
        attention_maps(model, IDS[:, :1])
    with pytest.raises(ModelError, match="17 tokens are more than the model's context of 16"):
        attention_maps(model, torch.ones(1, 17, dtype=torch.int64))


def test_statistics_of_heads_that_are_known() -> None:
    time = 5
    itself, before, first = np.eye(time), np.eye(time, k=-1), np.zeros((time, time))
    before[0, 0] = 1
    first[:, 0] = 1
    even = np.tril(np.ones((time, time))) / np.arange(1, time + 1)[:, None]
    one, two, three, four = AttentionMaps(
        [np.stack([itself, before]), np.stack([first, even])]
    ).statistics()
    assert (one.layer, one.head, four.layer, four.head) == (0, 0, 1, 1)
    assert (one.itself, one.distance, one.entropy_bits) == (1, 0, 0)
    assert (two.previous, two.distance, two.first) == (1, 1, 0.25)
    assert (three.first, three.distance) == (1, 2.5)
    assert four.entropy_bits == pytest.approx(np.mean(np.log2([2, 3, 4, 5])))
    assert four.distance == pytest.approx(np.mean([0.5, 1, 1.5, 2]))
