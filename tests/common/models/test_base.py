"""generate, save and load: for the models here and for any user's subclass with only a forward."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from common.data.batch import Batch
from common.errors import CheckpointError, ModelError
from common.models import BaseLanguageModel, BaseModel, Decoder
from common.training import Evaluator, TrainingConfig
from common.training.config import OptimizerConfig
from projects.custom_transformer.model import CustomTransformer
from tests.trainers import make_trainer

VOCAB, CONTEXT = 17, 12


class Bigram(BaseLanguageModel):
    """What a user writes first: no cache, no limit, nothing but forward(input_ids, labels=None)."""

    def __init__(self, vocab_size: int, width: int = 8) -> None:
        super().__init__(vocab_size, width=width)
        self.embedding = nn.Embedding(vocab_size, width)
        self.output = nn.Linear(width, vocab_size)

    def forward(
        self, input_ids: torch.Tensor, labels: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        logits = self.output(self.embedding(input_ids))
        if labels is None:
            return {"logits": logits}
        loss = nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
        )
        return {"logits": logits, "loss": loss}


class Tied(Bigram):
    """Weights that are one tensor under two names."""

    def __init__(self, vocab_size: int, width: int = 8) -> None:
        super().__init__(vocab_size, width)
        self.output.weight = self.embedding.weight


SMALL = {"num_layers": 2, "hidden_size": 16, "context_length": CONTEXT}
MODELS: dict[str, Callable[[], BaseLanguageModel]] = {
    "gpt2": lambda: Decoder(VOCAB, num_heads=2, **SMALL),
    "llama": lambda: Decoder(
        VOCAB, preset="llama", num_heads=4, num_kv_heads=2, qk_norm=True, **SMALL
    ),
    "char_lstm": lambda: Decoder(VOCAB, preset="char_lstm", **SMALL),
    "custom_transformer": lambda: CustomTransformer(VOCAB, num_heads=2, **SMALL),
    "a user's": lambda: Bigram(VOCAB),
    "a user's, tied": lambda: Tied(VOCAB),
}


def make(name: str, seed: int = 0) -> BaseLanguageModel:
    torch.manual_seed(seed)
    model = MODELS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model


every_model = pytest.mark.parametrize("name", MODELS)


def prompts(rows: int, length: int) -> torch.Tensor:
    return torch.randint(0, VOCAB, (rows, length), generator=torch.Generator().manual_seed(1))


# generate


@every_model
def test_greedy_generation_is_the_argmax_step_by_step(name: str) -> None:
    model = make(name).eval()
    ids = prompts(3, 4)
    found = model.generate(ids, CONTEXT - 4, temperature=0)
    for _ in range(CONTEXT - 4):
        ids = torch.cat([ids, model(ids)["logits"][:, -1].argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(found, ids)


@every_model
def test_generation_goes_on_past_the_context_with_logits_of_a_plain_forward_pass(name: str) -> None:
    model = make(name).eval()
    limit = model.context_limit
    found = model.generate(prompts(2, 5), 4 * CONTEXT, temperature=0)
    assert found.shape == (2, 5 + 4 * CONTEXT)
    for position in range(5, found.shape[1]):
        # Each token is the argmax after some number of the tokens before it: at least half a context.
        shortest = position if limit is None else min(position, limit // 2)
        longest = position if limit is None else min(position, limit)
        choices = [
            model(found[:, position - seen : position])["logits"][:, -1].argmax(-1)
            for seen in range(shortest, longest + 1)
        ]
        assert any(torch.equal(found[:, position], choice) for choice in choices)


@every_model
@pytest.mark.parametrize("length", [CONTEXT, CONTEXT + 1, 3 * CONTEXT])
def test_a_prompt_longer_than_the_context_is_read_from_its_end(name: str, length: int) -> None:
    model = make(name).eval()
    ids = prompts(2, length)
    found = model.generate(ids, 1, temperature=0)
    seen = ids if model.context_limit is None else ids[:, -CONTEXT:]
    assert torch.equal(found[:, :-1], ids)
    assert torch.equal(found[:, -1], model(seen)["logits"][:, -1].argmax(-1))
    assert model.generate(ids, 20, seed=0).shape == (2, length + 20)


@every_model
def test_a_seed_fixes_the_text_whatever_the_global_generator_does(name: str) -> None:
    model = make(name)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = model.generate(prompts(2, 3), 8, seed=7, temperature=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert torch.equal(model.generate(prompts(2, 3), 8, seed=7, temperature=3), first)
    assert not torch.equal(model.generate(prompts(2, 3), 8, seed=8, temperature=3), first)


def test_without_a_seed_the_global_generator_draws() -> None:
    model = make("gpt2")
    torch.manual_seed(5)
    first = model.generate(prompts(2, 3), 8)
    assert not torch.equal(model.generate(prompts(2, 3), 8), first)
    torch.manual_seed(5)
    assert torch.equal(model.generate(prompts(2, 3), 8), first)


@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"top_p": 0.6}, {"temperature": 0.5}])
def test_first_tokens_have_the_distribution_of_the_logits(options: dict[str, Any]) -> None:
    model = make("a user's").eval()
    prompt = torch.tensor([[4]])
    draws = 20_000
    tokens = model.generate(prompt, 1, seed=0, num_sequences=draws, **options)[:, 1]
    logits = model(prompt)["logits"][0, -1].double() / options.get("temperature", 1.0)
    weights = logits.softmax(-1).detach().numpy()
    order = np.argsort(-weights)
    kept = options.get("top_k", VOCAB)
    if "top_p" in options:
        kept = int(np.searchsorted(np.cumsum(weights[order]), options["top_p"])) + 1
    expected = np.zeros(VOCAB)
    expected[order[:kept]] = weights[order[:kept]] / weights[order[:kept]].sum()
    found = np.bincount(tokens.numpy(), minlength=VOCAB) / draws
    assert (np.abs(found - expected) <= 6 * np.sqrt(expected / draws)).all()


def test_num_sequences_continues_each_row_next_to_each_other() -> None:
    model = make("gpt2")
    found = model.generate(prompts(2, 3), 6, seed=0, num_sequences=4)
    assert found.shape == (8, 9)
    assert torch.equal(found[:, :3], prompts(2, 3).repeat_interleave(4, dim=0))
    assert len({tuple(row) for row in found[:4].tolist()}) > 1


def test_a_row_ends_with_its_first_stop_token_and_is_filled_up_with_it() -> None:
    model = make("a user's")
    free = model.generate(prompts(6, 2), 30, seed=3)
    stops = [int(free[0, 5]), int(free[1, 9])]
    found = model.generate(prompts(6, 2), 30, seed=3, stop_tokens=stops)
    lengths = []
    for row, unstopped in zip(found.tolist(), free.tolist(), strict=True):
        after = [i for i, token in enumerate(unstopped) if i >= 2 and token in stops]
        end = after[0] + 1 if after else len(unstopped)
        lengths.append(end)
        assert row[: min(end, len(row))] == unstopped[: min(end, len(row))]
        assert set(row[end:]) <= {unstopped[end - 1]}
    assert found.shape[1] == max(lengths)  # nothing is computed once every row has ended
    assert len(set(lengths)) > 1


def test_logits_are_computed_of_one_position_per_row_only(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    plain = Decoder._logits

    def watched(model: Decoder, hidden: torch.Tensor) -> torch.Tensor:
        seen.append(hidden.shape)
        return plain(model, hidden)

    monkeypatch.setattr(Decoder, "_logits", watched)
    make("gpt2").generate(prompts(2, 9), 4 * CONTEXT, seed=0)
    assert seen == [(2, 16)] * (4 * CONTEXT)


@every_model
def test_a_stream_yields_what_generate_returns(name: str) -> None:
    model = make(name)
    for new in (5, 40):
        tokens = list(model.stream(prompts(2, 3), new, seed=4, top_k=5))
        assert all(token.shape == (2,) and token.dtype == torch.int64 for token in tokens)
        found = model.generate(prompts(2, 3), new, seed=4, top_k=5)
        assert torch.equal(torch.stack(tokens, dim=1), found[:, 3:])


def test_a_caller_may_change_a_token_that_it_was_given() -> None:
    model = make("gpt2")
    expected = model.generate(prompts(2, 3), 8, temperature=0)[:, 3:]
    for number, token in enumerate(model.stream(prompts(2, 3), 8, temperature=0)):
        assert torch.equal(token, expected[:, number])
        token.fill_(0)


def test_generated_tokens_can_be_trained_on() -> None:
    model = make("gpt2")
    ids = model.generate(prompts(2, 3), 8, seed=0)
    model(ids, labels=ids)["loss"].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_stop_token_in_the_prompt_does_not_stop() -> None:
    model = make("gpt2")
    prompt = torch.tensor([[2, 3, 2]])
    found = model.generate(prompt, 5, seed=0, stop_tokens=[2])
    assert torch.equal(found, model.generate(prompt, 5, seed=0)[:, : found.shape[1]])
    assert found.shape[1] > 3


@every_model
def test_no_new_tokens_returns_the_prompt(name: str) -> None:
    assert torch.equal(make(name).generate(prompts(2, 3), 0), prompts(2, 3))


@pytest.mark.parametrize("training", [True, False])
def test_generation_runs_without_dropout_and_leaves_the_mode_as_it_was(training: bool) -> None:
    torch.manual_seed(0)
    model = Decoder(VOCAB, num_heads=2, dropout=0.9, **SMALL).train(training)
    greedy = [model.generate(prompts(1, 3), 8, temperature=0) for _ in range(3)]
    assert torch.equal(greedy[0], greedy[1]) and torch.equal(greedy[0], greedy[2])
    assert model.training is training and model.blocks[0].training is training
    with pytest.raises(ModelError):
        model.generate(prompts(1, 3), 2, temperature=-1)
    next(model.stream(prompts(1, 3), 5))  # a stream that is left in the middle
    assert model.training is training


def test_generation_keeps_no_gradients() -> None:
    model = make("gpt2")
    assert all(not token.requires_grad for token in model.stream(prompts(1, 3), 2))
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_k": -3}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_p": float("nan")}, "top_p"),
        ({"max_new_tokens": -2}, "max_new_tokens"),
        ({"num_sequences": 0}, "num_sequences"),
        ({"num_sequences": -1}, "num_sequences"),
    ],
)
def test_wrong_sampling_options_are_model_errors(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        make("gpt2").generate(prompts(1, 3), **({"max_new_tokens": 4} | options))


@pytest.mark.parametrize(
    "prompt",
    [
        torch.tensor([1, 2, 3]),
        torch.zeros(1, 0, dtype=torch.int64),
        torch.zeros(0, 3, dtype=torch.int64),
        torch.tensor([[0, VOCAB]]),
        torch.tensor([[-1, 2]]),
    ],
    ids=["one row without its batch", "no token", "no row", "past the vocabulary", "negative"],
)
def test_a_wrong_prompt_is_a_model_error(prompt: torch.Tensor) -> None:
    with pytest.raises(ModelError):
        make("gpt2").generate(prompt, 4)


def test_a_model_without_forward_says_so() -> None:
    class Empty(BaseLanguageModel):
        pass

    with pytest.raises(ModelError, match="Empty defines no forward"):
        Empty(5)(torch.zeros(1, 2, dtype=torch.int64))


# save and load


@every_model
def test_save_and_load_give_the_same_model(name: str, tmp_path: Path) -> None:
    model = make(name).eval()
    path = model.save_checkpoint(tmp_path / "saved", step=3, note="x")
    assert path == tmp_path / "saved"
    ids = prompts(2, 6)
    expected = model(ids)["logits"]

    built = type(model).load_checkpoint(path)
    assert built is not model and type(built) is type(model)
    assert torch.equal(built.eval()(ids)["logits"], expected)

    filled = make(name, seed=9).eval()
    assert not torch.equal(filled(ids)["logits"], expected)
    assert filled.load_checkpoint(str(path)) is filled
    assert torch.equal(filled(ids)["logits"], expected)

    found = BaseLanguageModel.load_checkpoint(path, device="cpu")
    assert type(found) is type(model)
    assert torch.equal(found.eval()(ids)["logits"], expected)
    assert [p.name for p in tmp_path.iterdir()] == ["saved"]


def test_tied_weights_stay_tied_after_loading(tmp_path: Path) -> None:
    path = make("a user's, tied").save_checkpoint(tmp_path / "saved")
    loaded = Tied.load_checkpoint(path)
    assert loaded.output.weight is loaded.embedding.weight


def test_saving_again_replaces_what_was_there(tmp_path: Path) -> None:
    make("gpt2", seed=1).save_checkpoint(tmp_path / "saved")
    second = make("a user's", seed=2)
    second.save_checkpoint(tmp_path / "saved")
    loaded = BaseLanguageModel.load_checkpoint(tmp_path / "saved")
    assert isinstance(loaded, Bigram)
    assert torch.equal(loaded.output.weight, second.output.weight)


def test_weights_that_do_not_fit_are_a_checkpoint_error_that_names_them(tmp_path: Path) -> None:
    path = make("gpt2").save_checkpoint(tmp_path / "saved")
    wider = Decoder(VOCAB, num_heads=2, num_layers=2, hidden_size=32, context_length=CONTEXT)
    with pytest.raises(CheckpointError, match="do not fit"):
        wider.load_checkpoint(path)
    with pytest.raises(CheckpointError, match="Decoder"):
        Bigram.load_checkpoint(path)


@pytest.mark.slow
def test_a_class_that_was_not_imported_is_never_imported_by_a_file(tmp_path: Path) -> None:
    kind = type("Vanished", (Bigram,), {})
    path = kind(VOCAB).save_checkpoint(tmp_path / "saved")
    text = (path / "state.json").read_text()
    assert "Vanished" in text
    code = (
        "from common.models import BaseLanguageModel\n"
        f"BaseLanguageModel.load_checkpoint({str(path)!r})"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "CheckpointError" in result.stderr and "Vanished" in result.stderr


def test_a_missing_folder_is_a_checkpoint_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        Decoder.load_checkpoint(tmp_path / "nothing")
    make("gpt2").save_checkpoint(tmp_path / "step_100")
    with pytest.raises(CheckpointError) as caught:
        Decoder.load_checkpoint(tmp_path / "step_10")
    assert "step_100" in caught.value.hint


def test_a_class_builds_the_subclass_that_was_saved(tmp_path: Path) -> None:
    path = make("a user's, tied").save_checkpoint(tmp_path / "saved")
    assert type(Bigram.load_checkpoint(path)) is Tied
    assert type(BaseLanguageModel.load_checkpoint(path)) is Tied


# A model of something else than text


class Classifier(BaseModel):
    """Digits: (batch, size) float -> {"logits": (batch, classes)}."""

    def __init__(self, size: int = 6, classes: int = 3) -> None:
        super().__init__(size=size, classes=classes)
        self.body = nn.Linear(size, 8)
        self.head = nn.Linear(8, classes)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.head(self.body(images).relu())}


@pytest.mark.parametrize("base", [BaseModel, Classifier])
def test_a_classifier_is_saved_and_loaded(base: type[BaseModel], tmp_path: Path) -> None:
    model = Classifier(size=5)
    loaded = base.load_checkpoint(model.save_checkpoint(tmp_path / "saved", step=3))
    assert isinstance(loaded, Classifier) and loaded.arguments == {"size": 5, "classes": 3}
    images = torch.randn(4, 5)
    assert torch.equal(loaded(images)["logits"], model(images)["logits"])
    again = Classifier(size=5).load_checkpoint(tmp_path / "saved")
    assert torch.equal(again(images)["logits"], model(images)["logits"])
    with pytest.raises(CheckpointError, match="which is no Decoder"):
        Decoder.load_checkpoint(tmp_path / "saved")
    with pytest.raises(CheckpointError, match="do not fit"):
        Classifier(size=4).load_checkpoint(tmp_path / "saved")


def test_a_classifier_says_the_roles_of_its_parameters() -> None:
    roles = Classifier().parameter_roles()
    weights = {"body.weight": "matrix", "head.weight": "head"}
    assert roles == weights | {"body.bias": "vector", "head.bias": "vector"}


def test_compiling_replaces_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def compile(call: Callable[..., Any], dynamic: bool | None = None) -> Callable[..., Any]:
        return lambda *inputs: calls.append(1) or call(*inputs)  # type: ignore[func-returns-value]

    monkeypatch.setattr(torch, "compile", compile)
    model, images = Classifier(), torch.randn(2, 6)
    expected = model(images)["logits"]
    model.set_compile(True)
    assert torch.equal(model(images)["logits"], expected) and len(calls) == 1
    model.set_compile(False)
    assert torch.equal(model(images)["logits"], expected) and len(calls) == 1


# A user's subclass in the rest of the library


class Cycle:
    """The text 0 1 2 ... 0 1 2 ..., which a bigram model can learn exactly."""

    def batch(self, index: int) -> Batch:
        starts = torch.arange(4)[:, None] + index
        ids = (starts + torch.arange(10)) % VOCAB
        return {"input_ids": ids, "labels": ids}


@pytest.mark.slow  # the first optimizer of a process imports much of PyTorch
def test_a_subclass_with_only_forward_trains_evaluates_and_generates() -> None:
    torch.manual_seed(0)
    model = Bigram(VOCAB, width=16)
    val = [Cycle().batch(i) for i in range(3)]
    before = Evaluator(model).evaluate(val)["loss"]
    config = TrainingConfig(max_steps=150, device="cpu")
    optimizer = OptimizerConfig(lr=0.05, weight_decay=0.0)
    metrics = make_trainer(model, Cycle(), config, optimizer=optimizer, val_data=val).fit()
    assert metrics["loss"] < 0.5 < before
    assert model.generate(torch.tensor([[3]]), 5, temperature=0).tolist() == [[3, 4, 5, 6, 7, 8]]
