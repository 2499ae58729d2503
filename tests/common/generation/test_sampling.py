"""From logits to tokens: greedy, temperature, top_k and top_p against the distributions they define."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from common.errors import ModelError
from common.generation.sampling import argmax, sample_next
from tests.budget import budget, examples, repeat

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
@examples(80)
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


# Vocabularies so large that a row is searched in two steps


def logits_of(vocab: int, spread: float) -> torch.Tensor:
    return torch.randn(vocab, generator=torch.Generator().manual_seed(vocab)) * spread


def exact_probabilities(
    logits: torch.Tensor, temperature: float, top_k: int | None, top_p: float | None
) -> np.ndarray:
    """In float64, by the definitions."""
    weights = (logits.double() / temperature).softmax(-1).numpy()
    order = np.argsort(-weights, kind="stable")[:top_k]
    kept = weights[order] / weights[order].sum()
    if top_p is not None:
        kept = kept[: int(np.searchsorted(np.cumsum(kept), top_p)) + 1]
    expected = np.zeros(len(weights))
    expected[order[: len(kept)]] = kept / kept.sum()
    return expected


@pytest.mark.slow
@repeat("vocab", [513, 50257, 511, 512, 1000], few=2)
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [
        (1.0, None, None),
        (0.7, None, None),
        (1.0, 50, None),
        (1.0, 700, None),
        (1.3, None, 0.9),
        (1.0, None, 0.999),
        (0.9, 100, 0.8),
    ],
)
def test_draws_pass_the_chi_square_test_against_float64(
    vocab: int, temperature: float, top_k: int | None, top_p: float | None
) -> None:
    logits = logits_of(vocab, spread=3.0)
    generator, counts = torch.Generator().manual_seed(1), np.zeros(vocab)
    draws = 20_000 if vocab <= 1000 else budget(1_600, 4_000)
    for _ in range(20):
        tokens = sample_next(
            logits.expand(draws // 20, -1),
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            generator=generator,
        )
        counts += np.bincount(tokens.numpy(), minlength=vocab)
    expected = draws * exact_probabilities(logits, temperature, top_k, top_p)
    assert counts[expected == 0].sum() == 0
    common = expected >= 10  # the rest together: chi-square needs some counts in every cell
    cells = [np.append(x[common], x[~common].sum()) for x in (counts, expected)]
    if cells[1][-1] < 10:
        cells = [x[:-1] for x in cells]
    found, wanted = cells
    assert chisquare(found, wanted * found.sum() / wanted.sum()).pvalue > 1e-4


@pytest.mark.parametrize("vocab", [6, 3000])
def test_top_p_keeps_all_that_are_as_likely_as_the_last_that_it_needs(vocab: int) -> None:
    logits = torch.full((vocab,), -30.0)
    logits[[1, 2, 5]] = 0.0
    tokens = sample_next(
        logits.expand(3_000, -1),
        temperature=1.0,
        top_k=None,
        top_p=0.5,
        generator=torch.Generator().manual_seed(0),
    )
    assert chisquare(np.bincount(tokens.numpy())[[1, 2, 5]]).pvalue > 1e-4
    assert set(tokens.tolist()) == {1, 2, 5}


def test_the_last_words_are_drawn_as_often_as_the_first() -> None:
    """The last block is shorter than the others and is opened together with some words before it."""
    logits = torch.full((600,), float("-inf"))
    logits[[0, 255, 256, 400, 511, 512, 598, 599]] = 0.0
    tokens = sample_next(
        logits.expand(16_000, -1),
        temperature=1.0,
        top_k=None,
        top_p=None,
        generator=torch.Generator().manual_seed(0),
    )
    counts = np.bincount(tokens.numpy(), minlength=600)
    assert counts.sum() == counts[[0, 255, 256, 400, 511, 512, 598, 599]].sum()
    assert chisquare(counts[counts > 0]).pvalue > 1e-4


@pytest.mark.slow
def test_a_word_of_small_probability_is_drawn_as_often_as_it_should_be() -> None:
    """A float32 sum over 50,257 words would round a probability of 1e-4 of them away or up."""
    logits = torch.zeros(50257)
    logits[:100] = 12.0  # together 99.7 %
    tokens = sample_next(
        logits.expand(2_000, -1),
        temperature=1.0,
        top_k=None,
        top_p=None,
        generator=torch.Generator().manual_seed(0),
    )
    rare = 50157 / (50157 + 100 * np.exp(12.0))
    assert (tokens >= 100).sum().item() == pytest.approx(
        2_000 * rare, abs=5 * np.sqrt(2_000 * rare)
    )


@pytest.mark.parametrize("vocab", [1, 511, 512, 700, 50257])
@pytest.mark.parametrize("rows", [1, 7, 600])
def test_argmax_is_the_first_of_the_largest(vocab: int, rows: int) -> None:
    if rows * vocab > 10**7:
        rows = 12
    generator = torch.Generator().manual_seed(0)
    logits = torch.randint(-50, 50, (rows, vocab), generator=generator).float()  # many are equal
    first = (logits == logits.amax(1, keepdim=True)).int().argmax(1)
    assert torch.equal(argmax(logits), first)
    strided = logits.repeat(1, 2)[:, :vocab]
    assert torch.equal(argmax(strided), first)


def test_argmax_finds_a_word_at_every_place() -> None:
    for place in (0, 1, 255, 256, 511, 512, 599):
        logits = torch.zeros(500, 600)
        logits[:, place] = 1.0
        assert (argmax(logits) == place).all()


@pytest.mark.parametrize("vocab", [6, 700])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"top_p": 0.9}])
def test_logits_without_a_distribution_are_a_model_error(
    vocab: int, value: float, options: dict[str, object]
) -> None:
    logits = torch.zeros(2, vocab)
    logits[1, 4] = value
    settings_ = {"temperature": 1.0, "top_k": None, "top_p": None} | options
    with pytest.raises(ModelError, match="NaN or infinite"):
        sample_next(logits, generator=None, **settings_)
