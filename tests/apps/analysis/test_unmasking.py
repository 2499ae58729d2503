"""The figure of the order of unmasking."""

from __future__ import annotations

import math

import torch
from matplotlib.collections import PathCollection

from apps.analysis.unmasking_page import plot_unmasking
from common.data.tokenizers import CharTokenizer
from common.generation.unmasking import Unmasking


def found(size: int) -> Unmasking:
    """The first token is given, the others are filled in from the last to the first."""
    steps = torch.tensor([[-1, *range(size - 2, -1, -1)]])
    confidence = torch.full((1, size), 0.5).masked_fill(steps < 0, math.nan)
    return Unmasking(1 + torch.arange(size)[None] % 2, steps, confidence)


def test_the_figure_shows_step_and_text_of_every_token() -> None:
    tokenizer = CharTokenizer(["$", "b"])
    axes = plot_unmasking(found(6), tokenizer, "costs 5 $").axes[0]
    (points,) = (each for each in axes.collections if isinstance(each, PathCollection))
    assert points.get_offsets().tolist() == [[1, 4], [2, 3], [3, 2], [4, 1], [5, 0]]
    assert [text.get_text() for text in axes.get_xticklabels()] == [r"\$", "b"] * 3
    long = plot_unmasking(found(1000), tokenizer, "long").axes[0]
    assert len(long.get_xticks()) < 20
