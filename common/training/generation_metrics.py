"""Diversity of generated text: distinct n-grams and repetition.

Repetitive text has a low loss but is worthless; greedy decoding of small models ends in loops
(Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration"). Both metrics depend on the
length: compare with real text of the same length.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

Texts = Sequence[Sequence[int]]  # token ids of each text


def distinct_n(texts: Texts, n: int) -> float:
    """Number of distinct n-grams in all texts, divided by the number of tokens.

    Li et al. 2016, "A Diversity-Promoting Objective Function for Neural Conversation Models",
    section 5 (others divide by the number of n-grams). N-grams do not cross texts. At most 1 for n
    = 1; NaN without tokens.
    """
    num_tokens = sum(len(text) for text in texts)
    return len({gram for text in texts for gram in _ngrams(text, n)}) / (num_tokens or math.nan)


def repetition_n(texts: Texts, n: int) -> float:
    """Fraction of n-grams that occurred earlier in the same text, averaged over texts.

    seq-rep-n of Welleck et al. 2020, "Neural Text Generation with Unlikelihood Training", section
    6: 1 - |different n-grams| / |n-grams|. Texts shorter than n are excluded; NaN if all are.
    """
    shares = []
    for text in texts:
        if grams := list(_ngrams(text, n)):
            shares.append(1 - len(set(grams)) / len(grams))
    return float(np.mean(shares)) if shares else math.nan


def generation_metrics(texts: Texts) -> dict[str, float]:
    """distinct_1, distinct_2 and, as Welleck et al. report it, repetition_4."""
    return {
        "distinct_1": distinct_n(texts, 1),
        "distinct_2": distinct_n(texts, 2),
        "repetition_4": repetition_n(texts, 4),
    }


def _ngrams(text: Sequence[int], n: int) -> Iterator[tuple[Any, ...]]:
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    return zip(*(text[start:] for start in range(n)), strict=False)
