"""Surprisal against Evaluator and against one softmax at a time in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from apps.analysis.surprisal import measure_surprisal
from common.data.loader import EvalWindows
from common.errors import DataError, ModelError
from common.models import BaseLanguageModel, Decoder
from common.training import Evaluator
from tests.tiny_training import tiny_model

VOCAB = 37
TOKEN_BYTES = np.arange(VOCAB) % 4


def model_of(preset: str) -> Decoder:
    torch.manual_seed(1)
    model = Decoder(
        VOCAB, preset=preset, num_layers=2, num_heads=2, hidden_size=16, context_length=12
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model


def text(length: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, VOCAB, length)


@pytest.mark.parametrize("preset", ["gpt2", "llama", "char_lstm"])
@pytest.mark.parametrize(("length", "context"), [(2, 12), (12, 12), (13, 12), (100, 12), (101, 5)])
def test_the_numbers_are_those_of_the_evaluator(preset: str, length: int, context: int) -> None:
    model, tokens = model_of(preset), text(length)
    found = measure_surprisal(model, tokens, token_bytes=TOKEN_BYTES, context_length=context)
    windows = EvalWindows(tokens.astype(np.uint32), batch_size=3, context_length=context)
    expected = Evaluator(model, token_bytes=TOKEN_BYTES).evaluate(windows, accuracy=True)
    assert found.loss == pytest.approx(expected["loss"], abs=1e-6)
    assert found.bits_per_byte == pytest.approx(expected["bits_per_byte"], abs=1e-6)
    assert found.accuracy == pytest.approx(expected["accuracy"], abs=1e-6)
    assert len(found.ids) - 1 == expected["num_tokens"]


def test_every_token_is_judged_by_those_before_it_in_its_window() -> None:
    model, tokens = model_of("llama").eval(), text(30)
    found = measure_surprisal(model, tokens, token_bytes=TOKEN_BYTES, context_length=12, top_k=3)
    assert np.isnan(found.nats[0]) and found.ranks[0] == -1 and found.context[0] == 0
    for place in range(1, 30):
        before = tokens[place - found.context[place] : place]
        assert len(before) == (place - 1) % 11 + 1
        with torch.no_grad():
            logits = model(torch.tensor(before[None]))["logits"][0, -1].double().numpy()
        p = np.exp(logits - logits.max())
        p /= p.sum()
        assert found.nats[place] == pytest.approx(-math.log(p[tokens[place]]), rel=1e-4)
        assert found.ranks[place] == (p > p[tokens[place]]).sum()
        best = np.argsort(-p)[:3]
        assert found.top_ids[place].tolist() == best.tolist()
        assert found.top_probabilities[place] == pytest.approx(p[best], rel=1e-4)


def test_equal_probabilities_count_as_argmax_counts_them() -> None:
    model = tiny_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    found = measure_surprisal(model, [3, 0, 5], token_bytes=np.ones(11, int), context_length=8)
    assert found.ranks[1:].tolist() == [0, 5] and found.top_ids[1].tolist() == [0, 1, 2, 3, 4]
    assert found.bits[1:] == pytest.approx([math.log2(11)] * 2)


def test_the_mode_of_the_model_is_left_as_it_was_and_dropout_is_off() -> None:
    model = tiny_model().train()  # with dropout 0.4
    first, again = (
        measure_surprisal(model, [1, 2, 3, 4], token_bytes=np.ones(11, int), context_length=8)
        for _ in range(2)
    )
    assert model.training and np.array_equal(first.nats[1:], again.nats[1:])


def test_what_cannot_be_judged_is_an_error() -> None:
    model = tiny_model()
    sizes = np.ones(11, int)
    with pytest.raises(DataError, match="1 tokens"):
        measure_surprisal(model, [1], token_bytes=sizes, context_length=8)
    with pytest.raises(ModelError, match="9 tokens are more than the model's context of 8"):
        measure_surprisal(model, [1, 2], token_bytes=sizes, context_length=9)
    with torch.no_grad():
        model.final_norm.weight.fill_(math.nan)  # type: ignore[operator, union-attr]  # nn.Module
    with pytest.raises(ModelError, match="predicts NaN"):
        measure_surprisal(model, [1, 2], token_bytes=sizes, context_length=8)


class Excludes(BaseLanguageModel):
    """Gives token 1 no probability at all."""

    def __init__(self) -> None:
        super().__init__(3)
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, input_ids, labels=None, cache=None):  # type: ignore[no-untyped-def]
        logits = torch.zeros(*input_ids.shape, 3) * self.scale
        logits[..., 1] = -math.inf
        return {"logits": logits}


def test_a_token_without_any_probability_is_an_error() -> None:
    with pytest.raises(ModelError, match="probability 0"):
        measure_surprisal(Excludes(), [0, 1], token_bytes=np.ones(3, int), context_length=8)
