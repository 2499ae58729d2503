"""Distinct n-grams and repetition, against texts whose numbers are known and another way to count."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.training.generation_metrics import distinct_n, generation_metrics, repetition_n

Texts = list[list[int]]
texts_of_few_tokens = st.lists(st.lists(st.integers(0, 3), max_size=12), max_size=5)


def grams(text: list[int], n: int) -> list[str]:
    return [" ".join(map(str, text[i : i + n])) for i in range(len(text) - n + 1)]


@given(texts=texts_of_few_tokens, n=st.integers(1, 5))
def test_both_equal_another_way_to_count(texts: Texts, n: int) -> None:
    everything = Counter(gram for text in texts for gram in grams(text, n))
    tokens = sum(map(len, texts))
    distinct = len(everything) / tokens if tokens else math.nan
    assert distinct_n(texts, n) == pytest.approx(distinct, nan_ok=True)

    shares = []
    for text in texts:
        seen: list[str] = []
        repeated = 0
        for gram in grams(text, n):
            repeated += gram in seen
            seen.append(gram)
        if seen:
            shares.append(repeated / len(seen))
    expected = math.fsum(shares) / len(shares) if shares else math.nan
    assert repetition_n(texts, n) == pytest.approx(expected, nan_ok=True)


def test_known_texts() -> None:
    loop, varied = [1, 2] * 6, list(range(12))
    assert repetition_n([loop], 2) == pytest.approx(9 / 11)  # 11 bigrams, two of them new
    assert repetition_n([varied], 1) == 0
    assert repetition_n([loop, varied], 2) == pytest.approx(9 / 22)  # a mean over texts
    assert distinct_n([varied], 1) == 1
    assert distinct_n([varied, varied], 1) == 0.5  # of all texts together
    assert distinct_n([loop], 2) == pytest.approx(2 / 12)  # by tokens, as Li et al. divide


def test_ngrams_do_not_cross_from_text_to_text() -> None:
    assert repetition_n([[1, 2], [1, 2]], 2) == 0
    assert distinct_n([[1], [2]], 2) == 0


def test_texts_without_ngrams_are_left_out_and_nothing_is_nan() -> None:
    assert repetition_n([[1, 1, 1], [1]], 2) == 0.5
    assert all(math.isnan(value) for value in generation_metrics([[]]).values())
    with pytest.raises(ValueError, match="at least 1"):
        distinct_n([[1, 2]], 0)


def test_the_three_that_are_reported() -> None:
    text = [[1, 2, 3, 4, 1, 2, 3, 4]]
    assert generation_metrics(text) == {
        "distinct_1": 4 / 8,
        "distinct_2": 4 / 8,
        "repetition_4": pytest.approx(1 / 5),
    }
