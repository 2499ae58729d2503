"""What is measured of predictions equals a count in float64, token by token."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.errors import DataError, ModelError
from common.models import BaseLanguageModel, Decoder
from common.training import Evaluator, prediction_metrics
from common.training.prediction_metrics import PredictionMeter, measure_predictions
from projects.custom_transformer.model import CustomTransformer
from tests.budget import examples

VOCAB = 13
Batches = list[dict[str, torch.Tensor]]


def gpt2(**options: Any) -> Decoder:
    torch.manual_seed(0)
    model = Decoder(VOCAB, num_layers=1, hidden_size=16, num_heads=2, context_length=16, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model


def uneven_batches(seed: int) -> Batches:
    """Batches of unlike size, length and number of labels, one of them with none."""
    generator = np.random.default_rng(seed)
    batches = []
    for index in range(4):
        shape = (int(generator.integers(1, 5)), int(generator.integers(2, 12)))
        ids = torch.from_numpy(generator.integers(0, VOCAB, shape))
        labels = ids.clone()
        labels[torch.from_numpy(generator.random(shape) < generator.random())] = -100
        if index == 1:
            labels[:] = -100
        batches.append({"input_ids": ids, "labels": labels})
    batches.append({"input_ids": ids})  # labels are the input ids
    return batches


@torch.no_grad()
def predictions(model: torch.nn.Module, batches: Batches) -> Iterator[tuple[int, int, np.ndarray]]:
    """(position, token, probabilities) of every predicted token, one by one."""
    model.eval()
    for batch in batches:
        labels = batch.get("labels", batch["input_ids"])
        for ids, row in zip(batch["input_ids"], labels, strict=True):
            scores = model(ids[None])["logits"][0].double().numpy()
            for position in range(1, len(ids)):
                if row[position] != -100:
                    odds = np.exp(scores[position - 1] - scores[position - 1].max())
                    yield position, int(row[position]), odds / odds.sum()


def expected_calibration_error(found: list[tuple[int, int, np.ndarray]], bins: int) -> float:
    """Guo et al. 2017, equation 3, written from the sets B_m."""
    error = 0.0
    for m in range(1, bins + 1):
        inside = [(p, t) for _, t, p in found if (m - 1) / bins < p.max() <= m / bins]
        if inside:
            accuracy = sum(int(p.argmax()) == t for p, t in inside) / len(inside)
            confidence = sum(float(p.max()) for p, _ in inside) / len(inside)
            error += len(inside) / len(found) * abs(accuracy - confidence)
    return error


@given(seed=st.integers(0, 10_000), bins=st.sampled_from([1, 4, 15]))
@examples(20)
def test_every_metric_equals_an_independent_count_in_float64(seed: int, bins: int) -> None:
    token_bytes = np.random.default_rng(seed).integers(1, 5, VOCAB)
    batches = uneven_batches(seed)
    model = gpt2().double()
    found = list(predictions(model, batches))
    nats = [-math.log(p[token]) for _, token, p in found]
    metrics = measure_predictions(model, batches, token_bytes=token_bytes, num_bins=bins)

    assert metrics.num_tokens == len(found)
    assert metrics.loss == pytest.approx(math.fsum(nats) / len(found), rel=1e-12)
    assert metrics.perplexity == pytest.approx(math.exp(metrics.loss), rel=1e-12)
    bytes_of_all = sum(int(token_bytes[token]) for _, token, _ in found)
    bits = math.fsum(nats) / math.log(2) / bytes_of_all
    assert metrics.bits_per_byte == pytest.approx(bits, rel=1e-12)
    top1 = sum(int(p.argmax()) == token for _, token, p in found)
    top5 = sum(token in np.argsort(-p)[:5] for _, token, p in found)
    assert (metrics.accuracy, metrics.top5_accuracy) == (top1 / len(found), top5 / len(found))

    longest = max(batch["input_ids"].shape[1] for batch in batches)
    assert metrics.position_loss.shape == metrics.position_counts.shape == (longest,)
    assert metrics.position_loss.dtype == np.float64 and metrics.position_counts[0] == 0
    for position in range(longest):
        here = [n for n, (at, _, _) in zip(nats, found, strict=True) if at == position]
        assert metrics.position_counts[position] == len(here)
        mean = math.fsum(here) / len(here) if here else math.nan
        assert metrics.position_loss[position] == pytest.approx(mean, rel=1e-12, nan_ok=True)

    assert metrics.calibration.counts.shape == (bins,)
    assert metrics.calibration.counts.sum() == len(found)
    expected = expected_calibration_error(found, bins)
    assert metrics.calibration.expected_error == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    "model",
    [
        gpt2(),
        gpt2(mixer="lstm", positions="none"),
        CustomTransformer(VOCAB, num_layers=1, num_heads=2, hidden_size=16, context_length=16),
    ],
    ids=["gpt2", "lstm", "custom"],
)
def test_it_agrees_with_the_evaluator_in_fp32_whatever_the_model(model: BaseLanguageModel) -> None:
    batches = uneven_batches(3)
    token_bytes = np.arange(1, VOCAB + 1)
    plain = Evaluator(model, token_bytes=token_bytes).evaluate(batches, accuracy=True)
    full = measure_predictions(model, batches, token_bytes=token_bytes).scalars()
    assert set(plain) < set(full)
    assert {name: full[name] for name in plain} == pytest.approx(plain, rel=1e-6)


def test_known_probabilities_fall_into_the_bins_they_should() -> None:
    # Confidences 0.5 (on the border of the two bins, right once), 0.9 (wrong) and 1 (right).
    odds = torch.tensor([[0.5, 0.5, 0], [0.5, 0.5, 0], [0.05, 0.9, 0.05], [0, 0, 1]])
    logits = odds.double().log()
    assert float(logits[0].softmax(0).max()) == 0.5
    meter = PredictionMeter(num_bins=2)
    last = logits[:1]  # what it predicts is not in the text
    meter.update(torch.cat([logits, last])[None], torch.tensor([[0, 0, 1, 0, 2]]))
    found = meter.compute().calibration
    assert found.counts.tolist() == [2, 2]  # ]0, 0.5] and ]0.5, 1]
    assert found.accuracy.tolist() == [0.5, 0.5]
    assert found.confidence == pytest.approx([0.5, 0.95])
    assert found.expected_error == pytest.approx(0.5 * 0 + 0.5 * 0.45)
    assert meter.compute().accuracy == 0.5


def test_a_model_that_cannot_tell_its_tokens_apart_gets_no_credit_for_it() -> None:
    ids = torch.arange(VOCAB)[None].repeat(2, 1)
    meter = PredictionMeter()
    meter.update(torch.zeros(2, VOCAB, VOCAB), ids)
    metrics = meter.compute()
    assert metrics.accuracy == 0  # the first token is the most likely, and is never predicted
    assert metrics.top5_accuracy == 4 / 12  # of the tokens 1 to 12, those up to 4
    assert metrics.loss == pytest.approx(math.log(VOCAB), rel=1e-6)


def test_text_that_the_model_wrote_itself_is_calibrated_and_overconfidence_is_seen() -> None:
    model = gpt2()
    ids = model.generate(torch.zeros(400, 1, dtype=torch.int64), 15, seed=1)
    error = measure_predictions(model, [{"input_ids": ids}]).calibration.expected_error
    assert error < 0.02  # 6,000 predictions: chance alone gives 0.01
    with torch.no_grad():
        model.final_norm.weight.mul_(4)
    sharp = measure_predictions(model, [{"input_ids": ids}]).calibration
    assert sharp.expected_error > 0.2
    filled = sharp.counts > 50
    assert (sharp.confidence > sharp.accuracy)[filled].all()


def test_a_position_that_can_be_known_from_the_context_costs_less() -> None:
    class Copy(BaseLanguageModel):
        """Knows that the second half of a text repeats the first."""

        def __init__(self) -> None:
            super().__init__(VOCAB)
            self.nothing = torch.nn.Parameter(torch.zeros(()))

        def forward(
            self, input_ids: torch.Tensor, labels: torch.Tensor | None = None
        ) -> dict[str, torch.Tensor]:
            logits = torch.zeros(*input_ids.shape, VOCAB)
            following = input_ids[:, :4]
            logits[:, 3:7] = torch.nn.functional.one_hot(following, VOCAB) * 50.0
            return {"logits": logits}

    halves = torch.from_numpy(np.random.default_rng(0).integers(0, VOCAB, (5, 4)))
    loss = measure_predictions(Copy(), [{"input_ids": torch.cat([halves, halves], 1)}])
    assert loss.position_loss[1:4] == pytest.approx(math.log(VOCAB), rel=1e-6)
    assert loss.position_loss[4:] == pytest.approx(0, abs=1e-6)


class Watched(BaseLanguageModel):
    """Remembers how many logits were asked for at once."""

    def __init__(self, model: BaseLanguageModel) -> None:
        super().__init__(model.vocab_size)
        self.model = model
        self.most_logits = 0

    def forward(
        self, input_ids: torch.Tensor, labels: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        output: dict[str, torch.Tensor] = self.model(input_ids)
        self.most_logits = max(self.most_logits, output["logits"].numel())
        return output


@pytest.mark.parametrize("rows", [0.5, 1, 3, 100])
def test_large_batches_are_computed_a_few_rows_at_a_time_with_the_same_result(
    rows: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, VOCAB, (10, 12)))
    labels = torch.where(torch.rand(10, 12) < 0.3, -100, ids)
    batch = {"input_ids": ids, "labels": labels}
    whole = measure_predictions(gpt2(), [batch])
    per_row = 12 * VOCAB
    monkeypatch.setattr(prediction_metrics, "_LOGITS_AT_A_TIME", int(rows * per_row))
    watched = Watched(gpt2())
    parts = measure_predictions(watched, [batch])
    assert watched.most_logits == per_row * min(10, max(1, int(rows)))
    assert parts.scalars() == pytest.approx(whole.scalars(), rel=1e-6)
    assert parts.position_loss == pytest.approx(whole.position_loss, rel=1e-5, nan_ok=True)


def test_measuring_is_without_dropout_and_leaves_mode_and_generator_as_they_were() -> None:
    model = gpt2(dropout=0.5).train()
    state = torch.get_rng_state()
    first = measure_predictions(model, uneven_batches(1)).scalars()
    assert first == measure_predictions(model, uneven_batches(1)).scalars()
    assert model.training and torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_nothing_to_predict_is_a_data_error() -> None:
    ids = torch.zeros(1, 4, dtype=torch.int64)
    for batches in ([], [{"input_ids": ids, "labels": torch.full_like(ids, -100)}]):
        with pytest.raises(DataError, match="nothing to evaluate"):
            measure_predictions(gpt2(), batches)


def test_a_diverged_model_is_told_instead_of_judged() -> None:
    model = gpt2()
    with torch.no_grad():
        model.final_norm.weight.fill_(math.nan)
    with pytest.raises(ModelError, match="NaN"):
        measure_predictions(model, uneven_batches(0))


def test_bf16_is_close_to_fp32() -> None:
    exact = measure_predictions(gpt2(), uneven_batches(4)).loss
    rough = measure_predictions(gpt2(), uneven_batches(4), precision="bf16").loss
    assert rough == pytest.approx(exact, rel=0.02) and rough != exact


@pytest.mark.slow  # imports transformers
def test_a_transformers_model_is_measured_the_same_way() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    shape = {"n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, **shape)).double()
    found = list(predictions(model, uneven_batches(2)))
    metrics = measure_predictions(model, uneven_batches(2))
    nats = [-math.log(p[token]) for _, token, p in found]
    assert metrics.loss == pytest.approx(math.fsum(nats) / len(nats), rel=1e-12)
