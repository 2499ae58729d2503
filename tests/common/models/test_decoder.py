"""Decoder presets against Hugging Face's models with the same weights; caches, causality, limits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from common.errors import ModelError
from common.models import BaseLanguageModel, Decoder
from projects.custom_transformer.model import CustomTransformer
from tests.budget import examples

VOCAB, CONTEXT = 29, 24


def decoder(**options: Any) -> Decoder:
    return Decoder(VOCAB, num_layers=2, hidden_size=32, context_length=CONTEXT, **options)


MODELS: dict[str, Callable[[], BaseLanguageModel]] = {
    "gpt2": lambda: decoder(preset="gpt2", num_heads=4),
    "llama, grouped, qk_norm": lambda: decoder(
        preset="llama", num_heads=4, num_kv_heads=2, qk_norm=True
    ),
    "char_lstm": lambda: decoder(preset="char_lstm"),
    "custom_transformer": lambda: CustomTransformer(
        VOCAB, num_layers=2, num_heads=4, hidden_size=32, context_length=CONTEXT
    ),
}


def make(name: str) -> BaseLanguageModel:
    """With weights large enough that positions, norms and neighbours matter to the logits."""
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


@pytest.fixture(scope="module")
def models() -> dict[str, BaseLanguageModel]:
    return {name: make(name) for name in MODELS}


every_model = pytest.mark.parametrize("name", MODELS)


@every_model
def test_forward_returns_logits_and_only_with_labels_a_loss(
    models: dict[str, BaseLanguageModel], name: str
) -> None:
    ids = torch.randint(0, VOCAB, (3, 7))
    output = models[name](ids)
    assert set(output) == {"logits"} and output["logits"].shape == (3, 7, VOCAB)
    output = models[name](ids, labels=ids)
    assert set(output) == {"logits", "loss"} and output["loss"].shape == ()
    expected = nn.functional.cross_entropy(
        output["logits"][:, :-1].reshape(-1, VOCAB), ids[:, 1:].reshape(-1)
    )
    torch.testing.assert_close(output["loss"], expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(models[name].compute_loss(ids, ids), expected, atol=1e-6, rtol=1e-5)


@every_model
def test_labels_of_minus_100_are_left_out_of_the_loss(
    models: dict[str, BaseLanguageModel], name: str
) -> None:
    ids = torch.randint(0, VOCAB, (2, 9))
    labels = ids.clone()
    labels[0, 3:7] = -100
    labels[1, :5] = -100
    output = models[name](ids, labels=labels)
    expected = nn.functional.cross_entropy(
        output["logits"][:, :-1].reshape(-1, VOCAB), labels[:, 1:].reshape(-1)
    )
    torch.testing.assert_close(output["loss"], expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(models[name].compute_loss(ids, labels), expected, atol=1e-6, rtol=0)
    nothing = torch.full_like(ids, -100)
    assert models[name](ids, labels=nothing)["loss"].item() == 0.0
    assert models[name].compute_loss(ids, nothing).item() == 0.0


@every_model
def test_changing_later_tokens_never_changes_earlier_logits(
    models: dict[str, BaseLanguageModel], name: str
) -> None:
    ids = torch.randint(0, VOCAB, (2, 12))
    before = models[name](ids)["logits"]
    for position in range(1, 12):
        changed = ids.clone()
        changed[:, position:] = torch.randint(0, VOCAB, (2, 12 - position))
        changed[:, position] = (ids[:, position] + 1) % VOCAB
        after = models[name](changed)["logits"]
        assert torch.equal(after[:, :position], before[:, :position])
        assert not torch.allclose(after[:, position], before[:, position])


@every_model
def test_rows_of_a_batch_do_not_see_each_other(
    models: dict[str, BaseLanguageModel], name: str
) -> None:
    ids = torch.randint(0, VOCAB, (4, 10))
    together = models[name](ids)["logits"]
    alone = torch.cat([models[name](row[None])["logits"] for row in ids])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


@given(
    name=st.sampled_from(list(MODELS)),
    chunks=st.lists(st.integers(1, 9), min_size=1, max_size=6).filter(lambda c: sum(c) <= CONTEXT),
    batch=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
@examples(60)
def test_cached_logits_equal_teacher_forced_ones_over_any_chunks(
    name: str, chunks: list[int], batch: int, seed: int
) -> None:
    model = make(name)
    ids = torch.randint(
        0, VOCAB, (batch, sum(chunks)), generator=torch.Generator().manual_seed(seed)
    )
    cache = model.new_cache(batch, sum(chunks))
    with torch.no_grad():
        parts = [model(part, cache=cache)["logits"] for part in ids.split(chunks, dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), model(ids)["logits"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "char_lstm"])
def test_more_tokens_than_the_context_are_a_model_error(
    models: dict[str, BaseLanguageModel], name: str
) -> None:
    model = models[name]
    ids = torch.randint(0, VOCAB, (1, CONTEXT + 1))
    model(ids[:, :CONTEXT])
    for call in (
        model,
        lambda ids: model(ids, labels=ids),
        lambda ids: model.compute_loss(ids, ids),
    ):
        with pytest.raises(ModelError, match=f"{CONTEXT + 1} tokens .* context of {CONTEXT}"):
            call(ids)
    cache = model.new_cache(1, CONTEXT + 1)
    model(ids[:, :CONTEXT], cache=cache)
    with pytest.raises(ModelError, match="context"):
        model(ids[:, CONTEXT:], cache=cache)


def test_an_lstm_has_no_context_limit(models: dict[str, BaseLanguageModel]) -> None:
    assert models["char_lstm"].context_limit is None
    ids = torch.randint(0, VOCAB, (1, 3 * CONTEXT))
    assert models["char_lstm"](ids)["logits"].shape == (1, 3 * CONTEXT, VOCAB)


def test_an_lstm_with_learned_positions_has_their_limit() -> None:
    model = decoder(preset="gpt2", mixer="lstm")
    with pytest.raises(ModelError, match="context"):
        model(torch.zeros(1, CONTEXT + 1, dtype=torch.int64))
    assert model.generate(torch.zeros(1, 3, dtype=torch.int64), CONTEXT, seed=0).shape[1] == 27


# Hugging Face's models with copied weights


def copy(target: nn.Parameter, source: torch.Tensor) -> None:
    assert target.shape == source.shape
    with torch.no_grad():
        target.copy_(source)


def randomise(model: nn.Module) -> None:
    """Every parameter, so that no bias or gain is at the value that hides a mistake."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(mean=1.0 if parameter.ndim == 1 else 0.0, std=0.2)


@pytest.mark.slow  # imports transformers
def test_gpt2_preset_equals_hugging_face_gpt2() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCAB, n_positions=CONTEXT, n_embd=32, n_layer=2, n_head=4, use_cache=False
        )
    ).eval()
    randomise(theirs)
    ours = decoder(preset="gpt2", num_heads=4).eval()
    body = theirs.transformer
    copy(ours.token_embedding.weight, body.wte.weight)
    copy(ours.position_embedding.weight, body.wpe.weight)
    for block, other in zip(ours.blocks, body.h, strict=True):
        for mine, its in (
            (block.mixer.query_key_value, other.attn.c_attn),
            (block.mixer.output, other.attn.c_proj),
            (block.feedforward.input, other.mlp.c_fc),
            (block.feedforward.output, other.mlp.c_proj),
        ):
            copy(mine.weight, its.weight.T)  # GPT-2 keeps (in, out)
            copy(mine.bias, its.bias)
        for mine, its in ((block.mixer_norm, other.ln_1), (block.feedforward_norm, other.ln_2)):
            copy(mine.weight, its.weight)
            copy(mine.bias, its.bias)
    copy(ours.final_norm.weight, body.ln_f.weight)
    copy(ours.final_norm.bias, body.ln_f.bias)
    assert ours.num_parameters() == theirs.num_parameters()
    assert_same_outputs(ours, theirs)


def copy_llama(ours: Decoder, theirs: Any) -> None:
    copy(ours.token_embedding.weight, theirs.model.embed_tokens.weight)
    copy(ours.head.weight, theirs.lm_head.weight)
    for block, other in zip(ours.blocks, theirs.model.layers, strict=True):
        attention = other.self_attn
        projections = [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]
        copy(block.mixer.query_key_value.weight, torch.cat(projections))
        copy(block.mixer.output.weight, attention.o_proj.weight)
        copy(block.feedforward.gate.weight, other.mlp.gate_proj.weight)
        copy(block.feedforward.input.weight, other.mlp.up_proj.weight)
        copy(block.feedforward.output.weight, other.mlp.down_proj.weight)
        copy(block.mixer_norm.weight, other.input_layernorm.weight)
        copy(block.feedforward_norm.weight, other.post_attention_layernorm.weight)
        if hasattr(attention, "q_norm"):
            copy(block.mixer.query_norm.weight, attention.q_norm.weight)
            copy(block.mixer.key_norm.weight, attention.k_norm.weight)
    copy(ours.final_norm.weight, theirs.model.norm.weight)
    assert ours.num_parameters() == sum(p.numel() for p in theirs.parameters())


LLAMA = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "use_cache": False,
    "tie_word_embeddings": False,
}


def test_llama_preset_equals_hugging_face_llama() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    theirs = LlamaForCausalLM(LlamaConfig(**LLAMA)).eval()
    randomise(theirs)
    ours = decoder(preset="llama", num_heads=4, num_kv_heads=2).eval()
    copy_llama(ours, theirs)
    assert_same_outputs(ours, theirs)


def test_llama_with_qk_norm_equals_hugging_face_qwen3() -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    theirs = Qwen3ForCausalLM(Qwen3Config(**LLAMA, head_dim=8)).eval()
    randomise(theirs)
    ours = decoder(preset="llama", num_heads=4, num_kv_heads=2, qk_norm=True).eval()
    copy_llama(ours, theirs)
    assert_same_outputs(ours, theirs)


@torch.no_grad()
def assert_same_outputs(ours: Decoder, theirs: nn.Module) -> None:
    ids = torch.randint(0, VOCAB, (3, CONTEXT), generator=torch.Generator().manual_seed(4))
    labels = ids.clone()
    labels[1, 5:9] = -100
    expected = theirs(ids, labels=labels)
    found = ours(ids, labels=labels)
    assert float(expected.logits.std()) > 0.5  # a comparison of zeros would show nothing
    torch.testing.assert_close(found["logits"], expected.logits, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(found["loss"], expected.loss, atol=1e-6, rtol=1e-6)


# What is built


def test_a_preset_is_a_set_of_defaults_that_arguments_win_over() -> None:
    model = decoder(preset="llama", tie_embeddings=True, norm="layernorm", num_heads=4)
    assert model.head is None and isinstance(model.final_norm, nn.LayerNorm)
    assert model.blocks[0].mixer.rope is not None


def test_residual_projections_start_smaller() -> None:
    torch.manual_seed(0)
    model = Decoder(64, num_layers=8, hidden_size=128, num_heads=4)
    block = model.blocks[3]
    assert block.feedforward.input.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert block.feedforward.output.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)
    assert block.mixer.output.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)
    assert block.mixer.query_key_value.bias.abs().max().item() == 0.0


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"hidden_size": 30, "num_heads": 4}, "not a multiple of num_heads"),
        ({"num_heads": 4, "num_kv_heads": 3}, "num_kv_heads"),
        ({"preset": "llama", "hidden_size": 12, "num_heads": 4}, "even"),
        ({"mixer": "lstm", "positions": "rope"}, "attention"),
        ({"layers": 3}, "layers"),
        ({"layers": "gru", "mixer": "lstm", "positions": "none"}, "mixer=lstm has no effect"),
        ({"num_layers": 0}, "num_layers"),
        ({"preset": "gpt5"}, "preset"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_a_shape_that_cannot_be_built_is_a_model_error(
    options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ModelError, match=reason):
        Decoder(VOCAB, **options)
