"""Attention and LSTM against plain loops in float64, whole and continued from a cache."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from common.models.config import DecoderConfig
from common.models.mixers.attention import Attention, eager_attention
from common.models.mixers.base import Mixer, Positions
from common.models.mixers.local_attention import LocalAttention
from common.models.mixers.options import NoOptions, WindowOptions
from common.models.mixers.recurrent import LSTM
from tests.budget import examples


def array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().numpy()


def rotate_by_hand(x: np.ndarray, position: int, theta: float) -> np.ndarray:
    """Rotate the pairs (x_i, x_{i + d/2}) as complex numbers."""
    half = len(x) // 2
    turned = x.copy()
    for i in range(half):
        angle = position * theta ** (-2 * i / len(x))
        pair = complex(x[i], x[i + half]) * complex(math.cos(angle), math.sin(angle))
        turned[i], turned[i + half] = pair.real, pair.imag
    return turned


def rms_by_hand(x: np.ndarray, gain: np.ndarray) -> np.ndarray:
    return gain * x / math.sqrt((x**2).mean() + 1e-6)


def attention_by_hand(module: Attention, config: DecoderConfig, x: np.ndarray) -> np.ndarray:
    """One query at a time, over the keys up to its own position; x: (batch, time, hidden)."""
    heads, kv_heads, size = module.num_heads, module.num_kv_heads, module.head_size
    weight, bias = array(module.query_key_value.weight), module.query_key_value.bias
    output = np.zeros_like(x)
    for row in range(x.shape[0]):
        queries, keys, values = [], [], []
        for position in range(x.shape[1]):
            projected = weight @ x[row, position] + (array(bias) if bias is not None else 0)
            parts = projected.reshape(heads + 2 * kv_heads, size)
            query, key = parts[:heads].copy(), parts[heads : heads + kv_heads].copy()
            if config.qk_norm:
                query = np.stack([rms_by_hand(q, array(module.query_norm.weight)) for q in query])
                key = np.stack([rms_by_hand(k, array(module.key_norm.weight)) for k in key])
            if config.positions == "rope":
                query = np.stack([rotate_by_hand(q, position, config.rope_theta) for q in query])
                key = np.stack([rotate_by_hand(k, position, config.rope_theta) for k in key])
            queries.append(query), keys.append(key), values.append(parts[heads + kv_heads :])
        for position in range(x.shape[1]):
            mixed = []
            for head in range(heads):
                shared = head // (heads // kv_heads)  # neighbouring query heads share a key head
                scores = np.array(
                    [
                        queries[position][head] @ keys[seen][shared] / math.sqrt(size)
                        for seen in range(position + 1)
                    ]
                )
                weights = np.exp(scores - scores.max())
                weights /= weights.sum()
                mixed.append(sum(w * values[s][shared] for s, w in enumerate(weights)))
            result = array(module.output.weight) @ np.concatenate(mixed)
            if module.output.bias is not None:
                result += array(module.output.bias)
            output[row, position] = result
    return output


ATTENTION = {
    "gpt2": {"num_heads": 4},
    "one head": {"num_heads": 1},
    "rope": {"num_heads": 2, "positions": "rope", "bias": False},
    "rope, theta": {"num_heads": 2, "positions": "rope", "rope_theta": 100.0},
    "grouped": {"num_heads": 4, "num_kv_heads": 2, "positions": "rope"},
    "multi-query, qk_norm": {
        "num_heads": 4,
        "num_kv_heads": 1,
        "positions": "rope",
        "qk_norm": True,
    },
}


def attention_of(options: dict[str, Any]) -> tuple[Attention, DecoderConfig]:
    torch.manual_seed(0)
    config = DecoderConfig(hidden_size=16, context_length=16, **options)
    module = Attention(config, NoOptions(), 0).double().eval()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, mean=0.3 if parameter.ndim == 1 else 0.0, std=0.5)
    return module, config


@pytest.mark.parametrize("options", ATTENTION.values(), ids=ATTENTION.keys())
def test_attention_equals_a_plain_loop_in_float64(options: dict[str, Any]) -> None:
    module, config = attention_of(options)
    x = torch.randn(2, 7, 16, dtype=torch.float64)
    # The table of RoPE is kept in fp32, which is where the last digits go.
    tolerance = 1e-6 if config.positions == "rope" else 1e-12
    np.testing.assert_allclose(
        array(module(x, Positions())),
        attention_by_hand(module, config, x.numpy()),
        atol=tolerance,
        rtol=0,
    )


def assert_pieces_equal_the_whole(
    module: Mixer, x: torch.Tensor, sizes: list[int], max_length: int
) -> None:
    state, start, parts = module.new_state(len(x), max_length), 0, []
    with torch.no_grad():
        for part in x.split(sizes, dim=1):
            parts.append(module(part, Positions(start), state))
            start += part.shape[1]
        whole = module(x, Positions())
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-12, rtol=0)


@given(
    name=st.sampled_from(list(ATTENTION)),
    chunks=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    spare=st.integers(0, 3),
    seed=st.integers(0, 1000),
)
@examples(40)
def test_attention_in_chunks_equals_attention_at_once(
    name: str, chunks: list[int], spare: int, seed: int
) -> None:
    total = min(sum(chunks), 16)
    module, _ = attention_of(ATTENTION[name])
    x = torch.randn(
        2, total, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    sizes = [len(part) for part in np.split(np.arange(total), np.cumsum(chunks)[:-1])]
    assert_pieces_equal_the_whole(module, x, [size for size in sizes if size], total + spare)


@pytest.mark.parametrize("options", ATTENTION.values(), ids=ATTENTION.keys())
def test_a_cache_grows_with_the_text_and_token_by_token_attention_stays_exact(
    options: dict[str, Any],
) -> None:
    torch.manual_seed(0)
    total = 300
    config = DecoderConfig(hidden_size=16, context_length=total, **options)
    module = Attention(config, NoOptions(), 0).double()
    x = torch.randn(2, total, 16, dtype=torch.float64)
    cache = module.new_state(2, total)
    with torch.no_grad():
        parts = [module(x[:, :3], Positions(), cache)]
        for position in range(3, total):
            where = Positions(position)
            parts.append(module(x[:, position : position + 1], where, cache))
            seen = position + 1
            assert cache.length == seen <= cache.keys.shape[2] <= min(seen * 9 // 8 + 33, total)
        torch.testing.assert_close(
            torch.cat(parts, dim=1), module(x, Positions()), atol=1e-12, rtol=0
        )


def test_attention_is_dropped_out_in_training_only() -> None:
    config = DecoderConfig(hidden_size=16, num_heads=2, dropout=0.5)
    module, where = Attention(config, NoOptions(), 0), Positions()
    x = torch.randn(1, 8, 16)
    assert not torch.equal(module(x, where), module(x, where))
    module.eval()
    assert torch.equal(module(x, where), module(x, where))


def lstm_by_hand(module: LSTM, x: np.ndarray) -> np.ndarray:
    """The equations of torch.nn.LSTM's page: gates i, f, g, o, one token at a time."""
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    w_input, w_hidden, b_input, b_hidden = (array(getattr(module.lstm, name)) for name in names)
    output = np.zeros_like(x)
    for row in range(x.shape[0]):
        hidden = cell = np.zeros(x.shape[2])
        for position in range(x.shape[1]):
            gates = w_input @ x[row, position] + b_input + w_hidden @ hidden + b_hidden
            i, f, g, o = np.split(gates, 4)
            i, f, o = (1 / (1 + np.exp(-gate)) for gate in (i, f, o))
            cell = f * cell + i * np.tanh(g)
            hidden = o * np.tanh(cell)
            output[row, position] = hidden
    return output


def lstm() -> LSTM:
    torch.manual_seed(0)
    return LSTM(DecoderConfig(preset="char_lstm", hidden_size=6), NoOptions(), 0).double()


def test_lstm_equals_a_plain_loop_in_float64() -> None:
    module = lstm()
    x = torch.randn(3, 9, 6, dtype=torch.float64)
    np.testing.assert_allclose(
        array(module(x, Positions())), lstm_by_hand(module, x.numpy()), atol=1e-12
    )


@given(chunks=st.lists(st.integers(1, 5), min_size=1, max_size=5))
@examples(20)
def test_lstm_in_chunks_equals_lstm_at_once(chunks: list[int]) -> None:
    x = torch.randn(2, sum(chunks), 6, dtype=torch.float64)
    assert_pieces_equal_the_whole(lstm(), x, chunks, sum(chunks))


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_eager_attention_equals_pytorchs_own_with_its_gradients(kv_heads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, heads, 9, 8) for heads in (4, kv_heads, kv_heads)]
    inputs = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    results = []
    for attend in (
        eager_attention,
        partial(F.scaled_dot_product_attention, is_causal=True, enable_gqa=True),
    ):
        leaves = [x.clone().requires_grad_() for x in inputs]
        output = attend(*leaves)
        output.square().sum().backward()
        results.append([output.detach(), *(leaf.grad for leaf in leaves)])
    for mine, reference in zip(*results, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-10, atol=1e-12)


def test_eager_attention_computes_in_the_precision_of_autocast() -> None:
    query = torch.randn(1, 2, 5, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = eager_attention(query, query, query)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(
        low.float(), eager_attention(query, query, query), rtol=2e-2, atol=2e-2
    )


@pytest.mark.parametrize("with_documents", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("time", [3, 7, 8, 14, 15, 30])
def test_local_attention_is_attention_with_a_mask(
    time: int, causal: bool, with_documents: bool
) -> None:
    window = 7
    config = DecoderConfig(
        mixer="local_attention",
        hidden_size=16,
        num_heads=4,
        num_kv_heads=2,
        positions="rope",
        context_length=32,
        options={"local_attention": {"window": window}},
    )
    torch.manual_seed(0)
    local = LocalAttention(config, WindowOptions(window=window), 0).double()
    whole = Attention(config, NoOptions(), 0).double()
    whole.load_state_dict(local.state_dict())
    documents = torch.randint(0, 2, (2, time)).cumsum(dim=1) if with_documents else None
    distance = torch.arange(time)[:, None] - torch.arange(time)
    mask = (distance < window) & (distance >= 0 if causal else distance > -window)
    mask = mask.expand(2, 1, -1, -1)
    if documents is not None:
        mask = mask & (documents[:, None, :, None] == documents[:, None, None])
    x = torch.randn(2, time, 16, dtype=torch.float64, requires_grad=True)
    short = None if documents is None else documents[:, None, :, None] == documents[:, None, None]
    if short is not None and causal:
        short = short.tril()
    results = []
    for module, where in (
        (local, Positions(documents=documents, mask=short, causal=causal)),
        (whole, Positions(mask=mask, causal=causal)),
    ):
        output = module(x, where)
        results.append([output, *torch.autograd.grad(output.square().sum(), x)])
    for mine, reference in zip(*results, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-9, atol=1e-10)
