"""Evaluation: every predicted token counts once, in nats, perplexity and bits per byte."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.data.loader import EvalWindows
from common.data.tokenizers import BPETokenizer, CharTokenizer
from common.errors import DataError
from common.models import BaseLanguageModel, Decoder
from common.training import Evaluator, compute_perplexity
from common.training.prediction_metrics import measure_predictions
from common.utils import query_experiments, save_experiment
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


def custom() -> CustomTransformer:
    torch.manual_seed(0)
    return CustomTransformer(VOCAB, num_layers=1, num_heads=2, hidden_size=16, context_length=16)


def uneven_batches(seed: int, count: int = 4) -> Batches:
    """Batches of unlike size, length and number of labels, one of them with none."""
    generator = np.random.default_rng(seed)
    batches = []
    for index in range(count):
        shape = (int(generator.integers(1, 5)), int(generator.integers(2, 12)))
        ids = torch.from_numpy(generator.integers(0, VOCAB, shape))
        labels = ids.clone()
        labels[torch.from_numpy(generator.random(shape) < generator.random())] = -100
        if index == 1:
            labels[:] = -100
        batches.append({"input_ids": ids, "labels": labels})
    batches.append({"input_ids": ids, "labels": ids})
    return batches


@torch.no_grad()
def brute_force(model: torch.nn.Module, batches: Batches) -> list[tuple[float, int]]:
    """(nats, token) of every predicted token, one by one in float64."""
    model.eval()
    found = []
    for batch in batches:
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            scores = model(ids[None])["logits"][0].double().log_softmax(-1)
            for position in range(len(ids) - 1):
                token = int(labels[position + 1])
                if token != -100:
                    found.append((-float(scores[position, token]), token))
    return found


@given(seed=st.integers(0, 10_000))
@examples(15)
def test_metrics_are_means_over_tokens_whatever_batch_they_came_in(seed: int) -> None:
    token_bytes = np.random.default_rng(seed).integers(0, 5, VOCAB)
    batches = uneven_batches(seed)
    for model in (gpt2(), custom()):
        tokens = brute_force(model, batches)
        nats = math.fsum(n for n, _ in tokens)
        metrics = Evaluator(model, "cpu", token_bytes=token_bytes).evaluate(iter(batches))
        assert metrics["num_tokens"] == len(tokens)
        assert metrics["loss"] == pytest.approx(nats / len(tokens), rel=1e-6)
        assert metrics["perplexity"] == pytest.approx(math.exp(nats / len(tokens)), rel=1e-5)
        size = sum(int(token_bytes[token]) for _, token in tokens)
        if size:
            expected = nats / math.log(2) / size
            assert metrics["bits_per_byte"] == pytest.approx(expected, rel=1e-6)
        else:
            assert "bits_per_byte" not in metrics


@given(seed=st.integers(0, 10_000))
@examples(10)
def test_accuracy_is_the_share_of_most_likely_tokens_and_changes_nothing_else(seed: int) -> None:
    batches = uneven_batches(seed)
    for model in (gpt2(), custom()):
        right, count = 0, 0
        for batch in batches:
            for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
                guesses = model(ids[None])["logits"][0].argmax(-1).tolist()
                pairs = list(zip(guesses[:-1], labels[1:].tolist(), strict=True))
                right += sum(guess == token for guess, token in pairs)
                count += sum(token != -100 for _, token in pairs)
        metrics = Evaluator(model).evaluate(batches, accuracy=True)
        assert metrics.pop("accuracy") == right / count
        assert metrics == pytest.approx(Evaluator(model).evaluate(batches), rel=1e-5)


def test_accuracy_is_only_computed_when_it_is_asked_for() -> None:
    class Lean(Decoder):
        def forward(self, *arguments: Any, **options: Any) -> dict[str, torch.Tensor]:
            raise AssertionError("evaluation for training needs no logits")

        def compute_loss(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return torch.tensor(2.0)

    lean = Lean(VOCAB, num_layers=1, hidden_size=16, num_heads=2)
    assert "accuracy" not in Evaluator(lean).evaluate(uneven_batches(0))
    with pytest.raises(AssertionError, match="needs no logits"):
        Evaluator(lean).evaluate(uneven_batches(0), accuracy=True)


def test_several_sets_are_judged_by_name() -> None:
    sets = {"val": uneven_batches(1), "other": uneven_batches(2)}
    evaluator = Evaluator(gpt2())
    found = evaluator.evaluate_sets(sets, accuracy=True)
    assert found == {
        name: evaluator.evaluate(batches, accuracy=True) for name, batches in sets.items()
    }
    frames = [
        evaluator.create_metrics_dataframe(metrics, epoch=1, split=name)
        for name, metrics in found.items()
    ]
    save_experiment("two_sets", pd.concat(frames))
    rows = query_experiments("SELECT split, accuracy FROM experiments ORDER BY split")
    assert rows["split"].tolist() == ["other", "val"]
    assert rows["accuracy"].tolist() == [found[name]["accuracy"] for name in ("other", "val")]


def test_a_set_without_labels_is_named() -> None:
    with pytest.raises(DataError, match="'empty'"):
        Evaluator(gpt2()).evaluate_sets({"val": uneven_batches(1), "empty": []})


class Known(BaseLanguageModel):
    """Gives every token the probability 1/4, whatever came before."""

    def __init__(self, vocab_size: int = 4) -> None:
        super().__init__(vocab_size)
        self.nothing = torch.nn.Parameter(torch.zeros(()))

    def forward(
        self, input_ids: torch.Tensor, labels: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        logits = self.nothing.expand(*input_ids.shape, self.vocab_size)
        return {"logits": logits, "loss": self.nothing + math.log(4)}


def test_a_uniform_model_has_exactly_2_bits_per_token() -> None:
    ids = torch.tensor([[0, 1, 2, 3, 0, 1]])
    metrics = Evaluator(Known(), token_bytes=[0, 1, 2, 3]).evaluate([{"input_ids": ids}])
    assert metrics["num_tokens"] == 5
    assert metrics["perplexity"] == pytest.approx(4.0, rel=1e-6)
    # 5 tokens of 2 bits; the predicted ones, 1 2 3 0 1, stand for 7 bytes.
    assert metrics["bits_per_byte"] == pytest.approx(5 * 2 / 7, rel=1e-6)


def test_bits_per_byte_over_windows_equals_bits_over_the_bytes_of_the_text() -> None:
    text = "so wie es war, so wäre es gewesen: ünïcödé " * 9
    tokenizer = CharTokenizer.train([text])
    tokens = tokenizer.encode(text).astype(np.uint16)
    torch.manual_seed(0)
    model = Decoder(
        tokenizer.vocab_size, num_layers=1, hidden_size=16, num_heads=2, context_length=8
    )
    windows = EvalWindows(tokens, batch_size=5, context_length=8)
    metrics = Evaluator(model, token_bytes=tokenizer.token_bytes).evaluate(windows)
    assert metrics["num_tokens"] == len(text) - 1
    size = len(text[1:].encode())
    expected = metrics["loss"] * (len(text) - 1) / math.log(2) / size
    assert metrics["bits_per_byte"] == pytest.approx(expected, rel=1e-12)


def test_evaluation_is_without_dropout_and_leaves_mode_and_generator_as_they_were() -> None:
    model = gpt2(dropout=0.5).train()
    batches = uneven_batches(1)
    state = torch.get_rng_state()
    first = Evaluator(model).evaluate(batches)
    assert first == Evaluator(model).evaluate(batches)
    assert model.training and model.blocks[0].training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_nothing_to_predict_is_a_data_error() -> None:
    ids = torch.zeros(1, 4, dtype=torch.int64)
    for batches in ([], [{"input_ids": ids, "labels": torch.full_like(ids, -100)}]):
        with pytest.raises(DataError, match="nothing to evaluate"):
            Evaluator(gpt2()).evaluate(batches)


def test_a_hopeless_model_has_an_infinite_perplexity_instead_of_an_overflow() -> None:
    class Hopeless(Known):
        def forward(
            self, input_ids: torch.Tensor, labels: torch.Tensor | None = None
        ) -> dict[str, torch.Tensor]:
            return {"logits": super().forward(input_ids)["logits"], "loss": self.nothing + 1e4}

    ids = torch.zeros(1, 4, dtype=torch.int64)
    assert Evaluator(Hopeless()).evaluate([{"input_ids": ids}])["perplexity"] == math.inf


def test_compute_perplexity_is_the_exponential_of_the_mean_loss() -> None:
    batches = uneven_batches(2)
    nats = [n for n, _ in brute_force(gpt2(), batches)]
    expected = math.exp(math.fsum(nats) / len(nats))
    assert compute_perplexity(gpt2(), batches, "cpu") == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow  # imports transformers
def test_a_transformers_model_is_judged_the_same_way() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCAB, n_positions=16, n_embd=16, n_layer=1, n_head=2)
    )
    batches = uneven_batches(3)
    nats = [n for n, _ in brute_force(model, batches)]
    metrics = Evaluator(model, "cpu", token_bytes=np.ones(VOCAB, dtype=np.int64)).evaluate(batches)
    assert metrics["num_tokens"] == len(nats)
    assert metrics["loss"] == pytest.approx(math.fsum(nats) / len(nats), rel=1e-5)
    assert metrics["bits_per_byte"] == pytest.approx(metrics["loss"] / math.log(2), rel=1e-9)


def test_bf16_is_close_to_fp32() -> None:
    batches = uneven_batches(4)
    exact = Evaluator(gpt2()).evaluate(batches)["loss"]
    assert Evaluator(gpt2(), precision="bf16").evaluate(batches)["loss"] == pytest.approx(
        exact, rel=0.02
    )


def test_padding_that_a_mask_names_never_counts() -> None:
    """In a batch of unlike texts as a Hugging Face tokenizer pads it, with and without labels."""
    torch.manual_seed(1)
    texts = [torch.randint(1, VOCAB, (length,)) for length in (3, 9, 2, 6)]
    alone: Batches = [{"input_ids": text[None], "labels": text[None]} for text in texts]
    padded = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(t) for t in texts], batch_first=True)
    model, token_bytes = gpt2(), np.arange(VOCAB)
    expected = Evaluator(model, token_bytes=token_bytes).evaluate(alone, accuracy=True)
    assert expected["num_tokens"] == 2 + 8 + 1 + 5
    for batch in (
        {"input_ids": padded, "attention_mask": mask},
        {"input_ids": padded, "attention_mask": mask, "labels": padded},
    ):
        found = Evaluator(model, token_bytes=token_bytes).evaluate([batch], accuracy=True)
        assert found == pytest.approx(expected, rel=1e-6)
        assert compute_perplexity(model, [batch]) == pytest.approx(expected["perplexity"])
        measured = measure_predictions(model, [batch], token_bytes=token_bytes)
        assert measured.scalars()["bits_per_byte"] == pytest.approx(expected["bits_per_byte"])
        assert measured.position_counts.tolist() == [0, 4, 3, 2, 2, 2, 1, 1, 1]
    with pytest.raises(DataError, match="padding before a token"):
        Evaluator(model).evaluate([{"input_ids": padded.flip(1), "attention_mask": mask.flip(1)}])


# Samples


class Spell(BaseLanguageModel):
    """Continues 0 1 2 3 ... one by one."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__(vocab_size)
        self.nothing = torch.nn.Parameter(torch.zeros(()))

    def forward(
        self, input_ids: torch.Tensor, labels: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        following = (input_ids + 1) % self.vocab_size
        return {"logits": torch.nn.functional.one_hot(following, self.vocab_size).float() * 100}


def test_samples_continue_prompts_and_end_at_the_end_of_text() -> None:
    tokenizer = CharTokenizer.train(["abcdef"])  # 0 is the end of text, then a ... f
    evaluator = Evaluator(Spell(tokenizer.vocab_size))
    texts = evaluator.generate_samples(["c", "", "abc"], tokenizer, 5, temperature=0)
    assert texts == ["cdef", "abcd", "abcde"]


def test_samples_are_reproducible_and_change_with_the_seed() -> None:
    tokenizer = CharTokenizer.train(["abcdefghijkl"])
    evaluator = Evaluator(gpt2())
    first = evaluator.generate_samples(["a", "b"], tokenizer, 14)
    torch.manual_seed(99)
    assert evaluator.generate_samples(["a", "b"], tokenizer, 14) == first
    assert evaluator.generate_samples(["a", "b"], tokenizer, 14, seed=1) != first


def test_prompts_of_any_length_get_as_many_new_tokens() -> None:
    tokenizer = CharTokenizer.train(["abcdefgh"])
    prompts = ["a", "abcdefgh" * 5 + "a"]
    texts = Evaluator(Spell(tokenizer.vocab_size)).generate_samples(
        prompts, tokenizer, temperature=0, max_new_tokens=5
    )
    new = [text.removeprefix(prompt) for text, prompt in zip(texts, prompts, strict=True)]
    assert [len(tokenizer.encode(text)) for text in new] == [5, 5]


@pytest.mark.parametrize("length", [1, 3, 4])
def test_samples_are_never_longer_than_max_length(length: int) -> None:
    tokenizer = CharTokenizer.train(["abcdefghijkl"])
    texts = Evaluator(gpt2()).generate_samples(["a"], tokenizer, length)
    assert len(texts[0]) <= length


@pytest.mark.slow  # imports transformers
def test_samples_work_with_a_hugging_face_tokenizer() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(9)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    texts = Evaluator(Spell(9)).generate_samples(["w3 w4", ""], tokenizer, 5, temperature=0)
    assert texts == ["w3 w4 w5 w6 w7", "w0 w1 w2 w3 w4"]


def test_samples_of_bytes_are_text() -> None:
    tokenizer = BPETokenizer.train(["the cat sat on the mat " * 20], 270)
    torch.manual_seed(0)
    model = Decoder(tokenizer.vocab_size, num_layers=1, hidden_size=16, num_heads=2)
    (text,) = Evaluator(model).generate_samples(["the ca"], tokenizer, 30)
    assert text.startswith("the ca")


def test_samples_of_a_model_that_cannot_generate_are_refused() -> None:
    with pytest.raises(TypeError, match="BaseLanguageModel"):
        Evaluator(torch.nn.Linear(2, 2)).generate_samples(["a"], CharTokenizer.train(["a"]))


# Into the experiment store


def test_a_metrics_dataframe_can_be_saved_and_asked_for() -> None:
    evaluator = Evaluator(gpt2(), token_bytes=np.ones(VOCAB, dtype=np.int64))
    metrics = evaluator.evaluate(uneven_batches(5))
    frame = evaluator.create_metrics_dataframe(metrics, epoch=2, split="val")
    save_experiment("judged", frame, metadata={"model": "gpt2"})
    row = query_experiments("SELECT * FROM experiments").iloc[0]
    assert row["experiment_name"] == "judged" and row["split"] == "val" and row["epoch"] == 2
    for name, value in metrics.items():
        assert row[name] == value
