"""From logits to tokens: greedy, temperature, top_k and top_p against the distributions they define."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.models.sampling import sample_next

DRAWS = 40_000
LOGITS = [1.2, -0.3, 0.4, 2.0, -1.5, 0.9]


def frequencies(logits: list[float], draws: int = DRAWS, **options: object) -> np.ndarray:
    rows = torch.tensor([logits]).expand(draws, -1)
    settings_ = {"temperature": 1.0, "top_k": None, "top_p": None} | options
    tokens = sample_next(rows, generator=torch.Generator().manual_seed(0), **settings_)
    return np.bincount(tokens.numpy(), minlength=len(logits)) / draws


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def assert_same_distribution(found: np.ndarray, expected: np.ndarray) -> None:
    """Six standard errors per token, and nothing where the probability is 0."""
    error = np.sqrt(expected * (1 - expected) / DRAWS)
    assert (np.abs(found - expected) <= 6 * error + 1e-12).all(), (found, expected)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_temperature_divides_the_logits(temperature: float) -> None:
    expected = softmax(np.array(LOGITS) / temperature)
    assert_same_distribution(frequencies(LOGITS, temperature=temperature), expected)


@pytest.mark.parametrize("top_k", [1, 2, 4, 6, 99])
def test_top_k_keeps_the_k_most_likely(top_k: int) -> None:
    weights = softmax(np.array(LOGITS))
    kept = np.argsort(-weights)[:top_k]
    expected = np.zeros(len(LOGITS))
    expected[kept] = weights[kept] / weights[kept].sum()
    assert_same_distribution(frequencies(LOGITS, top_k=top_k), expected)


@pytest.mark.parametrize("top_p", [0.01, 0.4, 0.75, 0.95, 1.0])
def test_top_p_keeps_the_fewest_that_reach_p(top_p: float) -> None:
    weights = softmax(np.array(LOGITS))
    order = np.argsort(-weights)
    count = int(np.searchsorted(np.cumsum(weights[order]), top_p)) + 1
    expected = np.zeros(len(LOGITS))
    kept = order[:count]
    expected[kept] = weights[kept] / weights[kept].sum()
    assert_same_distribution(frequencies(LOGITS, top_p=top_p), expected)


def test_top_p_acts_on_what_temperature_and_top_k_left() -> None:
    weights = softmax(np.array(LOGITS) / 0.7)
    order = np.argsort(-weights)[:3]
    weights = weights[order] / weights[order].sum()
    count = int(np.searchsorted(np.cumsum(weights), 0.8)) + 1
    expected = np.zeros(len(LOGITS))
    expected[order[:count]] = weights[:count] / weights[:count].sum()
    assert_same_distribution(frequencies(LOGITS, temperature=0.7, top_k=3, top_p=0.8), expected)


def test_rows_are_drawn_independently_of_each_other() -> None:
    logits = torch.tensor([[0.0, 30.0, 0.0], [30.0, 0.0, 0.0], [0.0, 0.0, 30.0]])
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        drawn = sample_next(logits, temperature=1.0, top_k=2, top_p=0.9, generator=generator)
        assert drawn.tolist() == [1, 0, 2]


@given(
    seed=st.integers(0, 2**31),
    vocab=st.integers(1, 20),
    temperature=st.sampled_from([0.0, 0.2, 1.0, 5.0]),
    top_k=st.one_of(st.none(), st.integers(1, 25)),
    top_p=st.one_of(st.none(), st.floats(0.001, 1.0)),
)
@settings(max_examples=80, deadline=None)
def test_a_token_always_comes_out_and_greedy_takes_the_largest(
    seed: int, vocab: int, temperature: float, top_k: int | None, top_p: float | None
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, vocab, generator=generator) * 10
    tokens = sample_next(
        logits, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator
    )
    assert tokens.shape == (5,) and tokens.dtype == torch.int64
    assert ((tokens >= 0) & (tokens < vocab)).all()
    if temperature == 0 or top_k == 1:
        assert torch.equal(tokens, logits.argmax(dim=1))


def test_impossible_tokens_are_never_drawn() -> None:
    found = frequencies([0.0, float("-inf"), 0.0, float("-inf")], draws=2000, top_k=3, top_p=1.0)
    assert found[1] == found[3] == 0


def test_half_precision_logits_can_be_sampled() -> None:
    logits = torch.tensor([LOGITS], dtype=torch.bfloat16)
    token = sample_next(logits, temperature=0.5, top_k=3, top_p=0.9, generator=None)
    assert int(token) in {0, 3, 5}


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-40])
def test_a_temperature_close_to_0_is_almost_greedy(temperature: float) -> None:
    token = sample_next(
        torch.tensor([LOGITS]), temperature=temperature, top_k=None, top_p=None, generator=None
    )
    assert token.tolist() == [3]
