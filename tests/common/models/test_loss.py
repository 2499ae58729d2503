"""The loss: the shifted mean over labels that are not -100, in enough precision, and its count."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.models.loss import count_labels, next_token_loss


def loss_by_hand(logits: np.ndarray, labels: np.ndarray) -> tuple[float, int]:
    """(mean nats, predicted tokens), one token at a time in float64."""
    total, count = 0.0, 0
    for row in range(labels.shape[0]):
        for position in range(labels.shape[1] - 1):
            target = labels[row, position + 1]
            if target == -100:
                continue
            scores = logits[row, position].astype(np.float64)
            peak = scores.max()
            total += peak + math.log(np.exp(scores - peak).sum()) - scores[target]
            count += 1
    return total / max(count, 1), count


@given(
    batch=st.integers(1, 4),
    time=st.integers(1, 6),
    vocab=st.integers(2, 9),
    ignored=st.floats(0, 1),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_loss_is_the_shifted_mean_over_labels_that_count(
    batch: int, time: int, vocab: int, ignored: float, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    logits = generator.normal(scale=4, size=(batch, time, vocab))
    labels = generator.integers(0, vocab, size=(batch, time))
    labels[generator.random((batch, time)) < ignored] = -100
    expected, count = loss_by_hand(logits, labels)
    found = next_token_loss(torch.from_numpy(logits), torch.from_numpy(labels))
    assert float(found) == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert count_labels(torch.from_numpy(labels)) == count


def test_a_batch_without_labels_has_loss_0_and_a_zero_gradient() -> None:
    logits = torch.randn(2, 5, 7, requires_grad=True)
    labels = torch.full((2, 5), -100)
    loss = next_token_loss(logits, labels)
    loss.backward()
    assert loss.item() == 0.0 and count_labels(labels) == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_the_first_label_of_a_row_is_never_predicted() -> None:
    labels = torch.tensor([[3, -100, -100]])
    assert count_labels(labels) == 0
    assert float(next_token_loss(torch.randn(1, 3, 5), labels)) == 0.0
    assert float(next_token_loss(torch.randn(1, 1, 5), labels[:, :1])) == 0.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_summed_in_fp32(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 300, 50, generator=generator).to(dtype)
    labels = torch.randint(0, 50, (4, 300), generator=generator)
    exact = next_token_loss(logits.double(), labels)
    found = next_token_loss(logits, labels)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(exact), rel=1e-6)


def test_loss_equals_that_of_hugging_face() -> None:
    from transformers.loss.loss_utils import ForCausalLMLoss

    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 8, 11, generator=generator)
    labels = torch.randint(0, 11, (3, 8), generator=generator)
    labels[0, 2:5] = -100
    theirs = ForCausalLMLoss(logits, labels, vocab_size=11)
    assert float(next_token_loss(logits, labels)) == pytest.approx(float(theirs), rel=1e-6)
