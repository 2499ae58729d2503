"""The loss: the shifted mean over labels that are not -100, in enough precision, and its count."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from common.data.batch import count_labels
from common.models import linear_loss
from common.models.loss import next_token_loss
from tests.budget import examples


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
@examples(60)
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


# The chunked loss


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks of rows, blocks of softmax rows and slices of the vocabulary; none divides evenly."""
    monkeypatch.setattr(linear_loss, "_CHUNK_BYTES", 7 * 101 * 4)
    monkeypatch.setattr(linear_loss, "_SOFTMAX_ROWS", 3)
    monkeypatch.setattr(linear_loss, "_VOCABULARY_SLICE", 40)


def gradients(
    compute: Callable[..., torch.Tensor], *inputs: torch.Tensor, factor: float = 1.0
) -> list[torch.Tensor]:
    """[loss, gradient of each input] of `factor` x the loss."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    value = compute(*leaves)
    (value * factor).backward()
    return [value.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def problem(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 13, 8, generator=generator, dtype=torch.float64).to(dtype)
    weight = torch.randn(101, 8, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.randint(0, 101, (2, 13), generator=generator)
    labels[0, 3:9] = -100
    return hidden, weight, labels


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("factor", [1.0, 0.25])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 3e-2)]
)
def test_the_chunked_loss_and_its_gradients_are_those_of_all_logits_in_float64(
    dtype: torch.dtype, tolerance: float, factor: float
) -> None:
    hidden, weight, labels = problem(dtype)
    found = gradients(
        lambda h, w: linear_loss.linear_next_token_loss(h, w, labels), hidden, weight, factor=factor
    )
    expected = gradients(
        lambda h, w: next_token_loss(h @ w.t(), labels),
        hidden.double(),
        weight.double(),
        factor=factor,
    )
    for mine, exact in zip(found, expected, strict=True):
        assert (mine.double() - exact).abs().max() <= tolerance * exact.abs().max()


@pytest.mark.usefixtures("small_chunks")
def test_a_tied_weight_gets_both_gradients_in_one_buffer() -> None:
    _, weight, labels = problem(torch.float64)
    ids = labels.clamp(min=0)

    def with_one_buffer(w: torch.Tensor) -> torch.Tensor:
        tied = linear_loss.TiedGradient()
        return linear_loss.linear_next_token_loss(tied.embed(ids, w), w, labels, tied)

    def plain(w: torch.Tensor) -> torch.Tensor:
        return next_token_loss(torch.nn.functional.embedding(ids, w) @ w.t(), labels)

    for mine, exact in zip(
        gradients(with_one_buffer, weight), gradients(plain, weight), strict=True
    ):
        torch.testing.assert_close(mine, exact, rtol=1e-12, atol=1e-14)


@pytest.mark.usefixtures("small_chunks")
def test_the_chunked_loss_of_nothing_is_zero_and_needs_no_gradient() -> None:
    hidden, weight, labels = problem(torch.float32)
    nothing = torch.full_like(labels, -100)
    value, *found = gradients(
        lambda h, w: linear_loss.linear_next_token_loss(h, w, nothing), hidden, weight
    )
    assert value == 0 and all(not gradient.any() for gradient in found)
    with torch.no_grad():
        expected = next_token_loss(hidden @ weight.t(), labels)
        torch.testing.assert_close(
            linear_loss.linear_next_token_loss(hidden, weight, labels), expected
        )


@pytest.mark.usefixtures("small_chunks")
def test_a_negative_label_other_than_minus_100_is_no_token_in_chunks_either() -> None:
    """-1 marks what is not predicted in nanoGPT: it would be predicted as token 0."""
    hidden, weight, labels = problem(torch.float32)
    labels[:, 4:] = -1
    with pytest.raises(RuntimeError, match="out of bounds"):
        linear_loss.linear_next_token_loss(hidden, weight, labels)


def test_large_vocabularies_never_have_all_logits_at_once() -> None:
    """The largest tensor that is made, by PyTorch's own account of its operators."""
    rows, vocab, size = 512, 40_000, 16
    hidden, weight = torch.randn(1, rows, size), torch.randn(vocab, size)
    labels = torch.randint(0, vocab, (1, rows))
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                largest = max(largest, result.numel())
            return result

    with Watch():
        gradients(lambda h, w: linear_loss.linear_next_token_loss(h, w, labels), hidden, weight)
    assert largest < rows * vocab / 4
