"""Folders in the format of Hugging Face, beside transformers' own models; and hostile ones."""

from __future__ import annotations

import importlib
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers as hf
import torch
from safetensors.torch import load_file, save_file

from apps.export.hub_format import save_pretrained
from common.data.tokenizers import (
    END_OF_TEXT,
    BPETokenizer,
    CharTokenizer,
    PretrainedTokenizer,
    SentencePieceTokenizer,
    TiktokenTokenizer,
    Tokenizer,
)
from common.data.tokenizers.fast_bpe import FastBPE
from common.data.tokenizers.patterns import GPT2 as GPT2_PATTERN
from common.errors import DataError, ModelError
from common.models import Decoder, load_pretrained
from common.models.base import BaseLanguageModel

pytestmark = pytest.mark.slow  # nearly all have folders that transformers has written


class _Transformers:
    """The package, which is imported when something of it is asked for: it takes seconds."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module("transformers"), name)


transformers: Any = _Transformers()
VOCABULARY, CONTEXT = 99, 64
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": None,
    "eos_token_id": None,
}
GPT2: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_positions": CONTEXT,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "bos_token_id": None,
    "eos_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
CONFIGS: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: transformers.GPT2Config(**GPT2),
    "gpt2_untied_relu2": lambda: transformers.GPT2Config(
        **GPT2, tie_word_embeddings=False, activation_function="relu2", n_inner=40
    ),
    "gpt2_gelu": lambda: transformers.GPT2Config(
        **GPT2, activation_function="gelu", layer_norm_epsilon=1e-2
    ),
    "llama2": lambda: transformers.LlamaConfig(**SIZES, rms_norm_eps=1e-2),
    "llama3": lambda: transformers.LlamaConfig(
        **SIZES, rope_parameters=LLAMA3, tie_word_embeddings=True
    ),
    "llama_biases_wide_heads": lambda: transformers.LlamaConfig(
        **SIZES, attention_bias=True, mlp_bias=True, head_dim=16
    ),
    "qwen2": lambda: transformers.Qwen2Config(**SIZES, rope_parameters={"rope_theta": 1e6}),
    "qwen2_tied_wide_heads": lambda: transformers.Qwen2Config(
        **SIZES, tie_word_embeddings=True, head_dim=16
    ),
    "qwen3": lambda: transformers.Qwen3Config(**SIZES, head_dim=16, rms_norm_eps=1e-2),
    "qwen3_tied": lambda: transformers.Qwen3Config(**SIZES, head_dim=8, tie_word_embeddings=True),
}


def randomise(model: torch.nn.Module) -> None:
    """Weights far from those of the start, so that no part of the network is without effect."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 + (parameter.ndim == 1))


def make_theirs(name: str, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name](), dtype=torch.float32)
    randomise(model)
    return model.eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every configuration as transformers writes it."""
    root = tmp_path_factory.mktemp("theirs")
    for name in CONFIGS:
        make_theirs(name).save_pretrained(root / name)
    return {name: root / name for name in CONFIGS}


def tokens(rows: int = 3, length: int = CONTEXT) -> torch.Tensor:
    return torch.randint(VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(1))


def from_transformers(folder: Path) -> Any:
    """What transformers reads from a folder, without any complaint."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(info.values()), info
    return model.eval()


@torch.no_grad()
def assert_same(ours: BaseLanguageModel, theirs: Any) -> None:
    inputs = tokens()
    expected = theirs(inputs).logits
    assert expected.std() > 0.5  # else the tolerance says nothing
    torch.testing.assert_close(ours.eval()(inputs)["logits"], expected, atol=1e-4, rtol=0)
    prompt = inputs[:, :7]
    greedy = theirs.generate(prompt, max_new_tokens=45, do_sample=False, pad_token_id=0)
    assert ours.generate(prompt, 45, temperature=0).tolist() == greedy.tolist()


@pytest.mark.parametrize("name", CONFIGS)
def test_theirs_to_ours_and_back(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    theirs, ours = from_transformers(folders[name]), load_pretrained(folders[name])
    assert_same(ours, theirs)
    save_pretrained(ours, tmp_path / "back")
    assert_same(ours, from_transformers(tmp_path / "back"))
    written, original = (
        load_file(f / "model.safetensors") for f in (tmp_path / "back", folders[name])
    )
    assert written.keys() == original.keys()
    assert all(torch.equal(written[key], original[key]) for key in written)


@pytest.mark.parametrize(
    "arguments",
    [
        {"preset": "gpt2"},
        {"preset": "gpt2", "bias": False, "tie_embeddings": False, "dropout": 0.1},
        {"preset": "gpt2", "qkv_bias": False, "activation": "relu_squared"},
        {"preset": "llama", "num_kv_heads": 1},
        {"preset": "llama", "bias": True, "tie_embeddings": True},
        {
            "preset": "llama",
            "rope_scaling": {"factor": 8.0, "original_context_length": 16},
        },
        {"preset": "qwen2", "norm_eps": 0.01},
        {"preset": "qwen3", "head_size": 6, "rope_theta": 1e6},
    ],
    ids=lambda arguments: " ".join(f"{k}={v}" for k, v in arguments.items()),
)
def test_ours_to_theirs_and_back(arguments: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = {"num_layers": 2, "hidden_size": 32, "num_heads": 4, "context_length": CONTEXT}
    ours = Decoder(VOCABULARY, **shape, **arguments)
    randomise(ours)
    assert save_pretrained(ours, tmp_path / "new" / "folder") == tmp_path / "new" / "folder"
    assert_same(ours, from_transformers(tmp_path / "new" / "folder"))
    again = load_pretrained(tmp_path / "new" / "folder")
    assert_same(again, from_transformers(tmp_path / "new" / "folder"))
    assert not list((tmp_path / "new").glob(".*"))  # nothing half-written is left


def test_the_whole_stretched_context_is_that_of_transformers() -> None:
    """Frequencies of all three kinds (kept, between, divided), at Llama 3.1's own settings."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    from common.models.mixers.rope import rope_frequencies
    from common.models.rope_scaling import Llama3Scaling

    rope = LLAMA3 | {"rope_theta": 5e5, "factor": 8.0, "original_max_position_embeddings": 8192}
    config = transformers.LlamaConfig(
        **(SIZES | {"max_position_embeddings": 131072}), rope_parameters=rope
    )
    config.head_dim = 128
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    scaling = Llama3Scaling(factor=8.0, original_context_length=8192)
    found = rope_frequencies(128, 5e5, scaling)
    torch.testing.assert_close(found, expected.double(), rtol=1e-5, atol=0)
    plain = rope_frequencies(128, 5e5, None)
    ratios = (plain / found).tolist()
    assert ratios[0] == 1 and ratios[-1] == pytest.approx(8)
    assert any(1.01 < ratio < 7.9 for ratio in ratios)


def test_files_in_parts_and_other_dtypes(folders: dict[str, Path], tmp_path: Path) -> None:
    theirs = make_theirs("qwen2").to(torch.bfloat16)
    theirs.save_pretrained(tmp_path / "parts", max_shard_size="20KB")
    assert len(list((tmp_path / "parts").glob("model-*.safetensors"))) > 2
    ours = load_pretrained(tmp_path / "parts")
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.float32}
    exact = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "parts", dtype=torch.float32
    )
    assert_same(ours, exact.eval())
    save_pretrained(ours.bfloat16(), tmp_path / "half")
    assert from_transformers(tmp_path / "half").dtype == torch.bfloat16


def test_training_goes_on_as_with_any_decoder(folders: dict[str, Path]) -> None:
    """Gradients of the chunked loss reach every parameter, and none of them is the file's memory."""
    ours, theirs = load_pretrained(folders["llama3"]), from_transformers(folders["llama3"])
    before = (folders["llama3"] / "model.safetensors").read_bytes()
    inputs = tokens()
    ours.train().compute_loss(inputs, inputs).backward()
    theirs(inputs, labels=inputs).loss.backward()
    found, expected = ours.token_embedding.weight.grad, theirs.model.embed_tokens.weight.grad
    assert found is not None
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
    assert all(parameter.grad is not None for parameter in ours.parameters())
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.zero_()
    assert (folders["llama3"] / "model.safetensors").read_bytes() == before
    other = Decoder(ours.vocab_size, **ours.arguments)  # as a checkpoint builds it
    other.load_state_dict(ours.state_dict())


def test_a_checkpoint_of_a_loaded_model_is_read_back(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    ours = load_pretrained(folders["qwen3"])
    ours.save_checkpoint(tmp_path / "checkpoint")
    again = BaseLanguageModel.load_checkpoint(tmp_path / "checkpoint").eval()
    inputs = tokens()
    assert torch.equal(again(inputs)["logits"], ours.eval()(inputs)["logits"])


@pytest.mark.parametrize("name", ["gpt2", "llama3"])
def test_a_shorter_context(name: str, folders: dict[str, Path]) -> None:
    whole = load_pretrained(folders[name]).eval()
    short = load_pretrained(folders[name], context_length=16).eval()
    inputs = tokens(length=16)
    torch.testing.assert_close(short(inputs)["logits"], whole(inputs)["logits"])
    with pytest.raises(ModelError, match="context of 16"):
        short(tokens(length=17))
    with pytest.raises(ModelError, match="context_length must be from 2 to 64, got 65"):
        load_pretrained(folders[name], context_length=65)


def test_layers_share_one_table_of_angles(folders: dict[str, Path]) -> None:
    model = load_pretrained(folders["llama2"])
    tables = {buffer.data_ptr() for _, buffer in model.named_buffers()}
    assert len(tables) == 2  # cosine and sine
    assert model.blocks[0].mixer.rope is model.blocks[1].mixer.rope  # type: ignore[union-attr]


def test_names_without_the_root_and_tensors_that_are_no_weights(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """As OpenAI's GPT-2 is on the hub: `h.0...`, with the masks that old versions saved."""
    tensors = load_file(folders["gpt2"] / "model.safetensors")
    old = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    old |= {f"h.{n}.attn.bias": torch.ones(1, 1, CONTEXT, CONTEXT) for n in range(2)}
    copy(folders["gpt2"], tmp_path / "old")
    save_file(old, tmp_path / "old" / "model.safetensors", {"format": "pt"})
    assert_same(load_pretrained(tmp_path / "old"), make_theirs("gpt2"))


# --- tokenizers ---

TEXTS = [
    "hello world",
    "the cat\n\n sat <|endoftext|> on",
    "  tabs\tand  spaces ",
    "x<|endoftext|>",
]


def make_tokenizer(kind: str) -> Tokenizer:
    """Of the kind, and small: tiktoken's and a foreign one are made from a BPE trained here."""
    texts = [*TEXTS, "日本 😀 é"]
    if kind == "char":
        return CharTokenizer.train(texts, 300)
    bpe = BPETokenizer.train(texts, 300)
    if kind == "bpe":
        return bpe
    if kind.startswith("tiktoken"):
        fast = FastBPE.of(json.loads(bpe.tokenizer.to_str()))
        assert fast is not None
        ranks = {token: i - 1 for token, i in fast._encoding._mergeable_ranks.items()}
        end = {"tiktoken, gap": len(ranks) + 3, "tiktoken, inside": 270}.get(kind, len(ranks))
        ranks = {token: i + (i >= end) for token, i in ranks.items()}
        return TiktokenTokenizer("test", GPT2_PATTERN, ranks, {END_OF_TEXT: end})
    theirs = hf.Tokenizer.from_str(bpe.tokenizer.to_str())
    theirs.add_special_tokens(["<s>", "</s>"])
    theirs.post_processor = hf.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", theirs.token_to_id("<s>"))]
    )
    return PretrainedTokenizer(theirs, "</s>")


@pytest.mark.parametrize(
    "kind", ["char", "bpe", "tiktoken", "tiktoken, gap", "tiktoken, inside", "pretrained"]
)
def test_the_tokenizer_comes_along(kind: str, tmp_path: Path) -> None:
    tokenizer = make_tokenizer(kind)
    model = Decoder(
        tokenizer.vocab_size + 7, num_layers=1, hidden_size=8, num_heads=2, context_length=16
    )
    save_pretrained(model, tmp_path / "both", tokenizer)
    theirs: Any = transformers.AutoTokenizer.from_pretrained(tmp_path / "both")
    for text in [*TEXTS, "日本 😀 é\r\n", "\n", ""][: -2 if kind == "char" else None]:
        text = text.replace("\r", "")
        assert theirs(text)["input_ids"] == tokenizer.encode(text).tolist(), text
        assert theirs.decode(tokenizer.encode(text)) == text
    assert theirs.eos_token_id == theirs.bos_token_id == tokenizer.end_of_text
    assert theirs.model_max_length == 16
    config = from_transformers(tmp_path / "both").config
    assert config.eos_token_id == tokenizer.end_of_text
    assert config.vocab_size == tokenizer.vocab_size + 7  # rows that no token has are kept


def test_tokenizers_that_do_not_fit(tmp_path: Path) -> None:
    tokenizer = CharTokenizer.train(["abc"])
    model = Decoder(3, num_layers=1, hidden_size=8, num_heads=2, context_length=16)
    with pytest.raises(ModelError, match="the tokenizer has 4 tokens, the model 3"):
        save_pretrained(model, tmp_path / "a", tokenizer)
    pieces = SentencePieceTokenizer.train(TEXTS, 300)
    wide = Decoder(300, num_layers=1, hidden_size=8, num_heads=2, context_length=16)
    with pytest.raises(DataError, match="SentencePieceTokenizer cannot be written"):
        save_pretrained(wide, tmp_path / "a", pieces)
    with pytest.raises(DataError, match="surrogate"):
        save_pretrained(
            Decoder(9, num_layers=1, hidden_size=8, num_heads=2, context_length=16),
            tmp_path / "a",
            CharTokenizer(["a", "\ud800"]),
        )
    assert list(tmp_path.iterdir()) == []


# --- what cannot be written ---


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"positions": "rope", "activation": "relu_squared", "bias": False}, "gpt_neox would need"),
        ({"preset": "llama", "positions": "learned"}, "llama would need positions=rope"),
        ({"preset": "char_lstm"}, "gpt2 would need layers of attention, mlp"),
        ({"preset": "qwen3", "bias": True}, "llama would need qk_norm=False"),
        ({"preset": "llama", "norm": "layernorm"}, "llama would need norm=rmsnorm"),
        ({"preset": "gpt2", "num_kv_heads": 1}, "gpt2 would need num_kv_heads=2"),
    ],
)
def test_a_decoder_of_no_family_is_refused_with_what_is_missing(
    arguments: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    shape = {"num_layers": 1, "hidden_size": 8, "num_heads": 2, "context_length": 16}
    with pytest.raises(ModelError) as error:
        save_pretrained(Decoder(9, **(shape | arguments)), tmp_path / "a")
    assert reason in error.value.message and "\n" not in error.value.message
    assert list(tmp_path.iterdir()) == []


def test_other_models_and_folders_in_use_are_refused(tmp_path: Path) -> None:
    class Special(Decoder):
        pass

    shape = {"num_layers": 1, "hidden_size": 8, "num_heads": 2, "context_length": 16}
    with pytest.raises(ModelError, match="a Special cannot be written"):
        save_pretrained(Special(9, **shape), tmp_path / "a")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.txt").write_text("precious")
    with pytest.raises(ModelError, match="already exists"):
        save_pretrained(Decoder(9, **shape), tmp_path / "used")
    assert [path.name for path in (tmp_path / "used").iterdir()] == ["mine.txt"]
    (tmp_path / "empty").mkdir()
    save_pretrained(Decoder(9, **shape), tmp_path / "empty")
    assert (tmp_path / "empty" / "config.json").is_file()


# --- what cannot be read ---


def copy(folder: Path, to: Path, **changes: Any) -> Path:
    """The folder with other values in config.json; `...` removes a key."""
    to.mkdir()
    config = json.loads((folder / "config.json").read_text()) | changes
    config = {key: value for key, value in config.items() if value is not ...}
    (to / "config.json").write_text(json.dumps(config))
    (to / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    return to


ROPE = {"rope_type": "default", "rope_theta": 1e4}
REFUSED = [
    ("llama2", "model_type", "opt"),
    ("llama2", "model_type", ...),
    ("llama2", "model_type", ["llama"]),
    ("llama2", "auto_map", {"AutoModelForCausalLM": "evil.Evil"}),
    ("llama2", "trust_remote_code", True),
    ("llama2", "quantization_config", {"bits": 4}),
    ("llama2", "attn_logit_softcapping", 50.0),
    ("llama2", "num_local_experts", 8),
    ("llama2", "partial_rotary_factor", 0.5),
    ("llama2", "hidden_act", "gelu"),
    ("llama2", "mlp_bias", True),
    ("llama2", "rope_scaling", {"type": "dynamic", "factor": 2.0}),
    ("llama2", "rope_scaling", {"type": "linear"}),
    ("llama2", "rope_scaling", {"type": "yarn", "factor": 2.0, "beta_fast": "32"}),
    ("llama2", "rope_scaling", {"rope_type": "mrope", "mrope_section": [1]}),
    ("llama2", "rope_scaling", {"full_attention": ROPE}),
    ("llama2", "rope_scaling", {**LLAMA3, "factor": "8"}),
    ("llama2", "rope_scaling", {**LLAMA3, "factor": -1}),
    ("llama2", "rope_scaling", {**LLAMA3, "low_freq_factor": 9.0}),
    ("llama2", "rope_scaling", "llama3"),
    ("llama2", "rope_parameters", {"rope_theta": float("nan")}),
    ("llama2", "rope_parameters", {"rope_theta": float("inf")}),
    ("llama2", "rms_norm_eps", "1e-6"),
    ("llama2", "tie_word_embeddings", "yes"),
    ("llama2", "hidden_size", 32.0),
    ("llama2", "hidden_size", True),
    ("llama2", "hidden_size", -32),
    ("llama2", "hidden_size", 0),
    ("llama2", "hidden_size", 10**30),
    ("llama2", "hidden_size", 2**31 - 1),
    ("llama2", "hidden_size", ...),
    ("llama2", "num_hidden_layers", 2**31 - 1),
    ("llama2", "num_hidden_layers", 3),
    ("llama2", "num_hidden_layers", 1),
    ("llama2", "num_attention_heads", 5),
    ("llama2", "num_attention_heads", [[[4]]]),
    ("llama2", "num_key_value_heads", 3),
    ("llama2", "vocab_size", 2**31 - 1),
    ("llama2", "vocab_size", 98),
    ("llama2", "intermediate_size", {"a": {"b": []}}),
    ("llama2", "max_position_embeddings", 2**31 - 1),
    ("llama2", "max_position_embeddings", 1),
    ("llama2", "head_dim", 7),
    ("llama2", "tie_word_embeddings", True),
    ("qwen2", "layer_types", ["full_attention", "sliding_attention"]),
    ("qwen2", "layer_types", ["full_attention", {"a": 1}]),
    ("qwen2", "layer_types", "sliding_attention"),
    ("qwen3", "attention_bias", True),
    ("gpt2", "activation_function", "swish"),
    ("gpt2", "scale_attn_by_inverse_layer_idx", True),
    ("gpt2", "scale_attn_weights", False),
    ("gpt2", "add_cross_attention", True),
    ("gpt2", "tie_word_embeddings", False),
    ("gpt2", "n_positions", 63),
    ("gpt2", "n_inner", 1),
]


# As the files on the hub have them: whoever refuses these refuses real models.
PUBLISHED: dict[str, dict[str, Any]] = {
    "gpt2": {
        **{"architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1, "embd_pdrop": 0.1, "n_ctx": 64},
        **{"resid_pdrop": 0.1, "summary_activation": None, "summary_first_dropout": 0.1},
        **{"summary_proj_to_labels": True, "summary_type": "cls_index", "summary_use_proj": True},
        **{"task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}}},
        **{"_num_labels": 1, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}},
    },
    "llama2": {
        **{"_name_or_path": "/a", "pretraining_tp": 1, "rope_scaling": None, "use_cache": True},
        **{"torch_dtype": "float16", "transformers_version": "4.31.0.dev0", "pad_token_id": 0},
        **{"is_llama_config": True, "rope_interleaved": False, "mlp_bias": False},
        **{"transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}}},
    },
    "qwen2": {
        **{"max_window_layers": 2, "sliding_window": 32768, "use_sliding_window": False},
        **{"use_mrope": False, "attention_dropout": 0.0, "torch_dtype": "bfloat16"},
    },
    "qwen3": {
        **{"max_window_layers": 36, "sliding_window": None, "use_sliding_window": False},
        **{"attention_bias": False, "rope_scaling": None, "torch_dtype": "bfloat16"},
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_keys_of_published_models_are_known(
    name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = copy(folders[name], tmp_path / "a", **PUBLISHED[name])
    inputs = tokens()
    expected = load_pretrained(folders[name]).eval()(inputs)["logits"]
    assert torch.equal(load_pretrained(folder).eval()(inputs)["logits"], expected)


@pytest.mark.parametrize(("name", "key", "value"), REFUSED)
def test_a_configuration_that_is_not_supported_is_refused_by_its_key(
    name: str, key: str, value: Any, folders: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(ModelError) as error:
        load_pretrained(copy(folders[name], tmp_path / "changed", **{key: value}))
    assert "\n" not in error.value.message and len(error.value.message) < 700
    shapes = (
        "shape",
        "tensor",
        "Decoder(",
        "ties it",
        "context",
        "belongs",
    )  # told by what does not fit
    assert key in error.value.message or any(word in error.value.message for word in shapes)


def test_a_window_counts_where_it_is_shorter_than_the_context(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    window = {"use_sliding_window": True, "max_window_layers": 1, "layer_types": ...}
    long = copy(folders["qwen2"], tmp_path / "long", **window, sliding_window=CONTEXT)
    assert_same(load_pretrained(long), from_transformers(long))
    short = copy(folders["qwen2"], tmp_path / "short", **window, sliding_window=20)
    assert_same(load_pretrained(short), from_transformers(short))
    # In a context that is no longer than the window, the layers are plain attention.
    cut = load_pretrained(short, context_length=20)
    assert cut.config.mixers == ["attention", "attention"]
    inputs = tokens(length=20)
    with torch.no_grad():
        expected = from_transformers(short)(inputs).logits
    torch.testing.assert_close(cut.eval()(inputs)["logits"], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"[]", b"null", b'"text"', b"{", b"\xff\xfe{}", b"[" * 200_000, b'{"a":' * 200_000),
        b'{"model_type": "llama", "hidden_size": ' + b"9" * 10_000 + b"}",
        b" " * (2**20 + 1),
    ],
    ids=range(10),
)
def test_a_config_that_is_no_config(
    content: bytes, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = copy(folders["llama2"], tmp_path / "changed")
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ModelError) as error:
        load_pretrained(folder)
    assert len(error.value.message.splitlines()) == 1 and "config.json" in error.value.message


def header_of(file: Path) -> tuple[dict[str, Any], bytes]:
    content = file.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def with_header(header: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def attacks(file: Path) -> dict[str, bytes]:
    """Damaged and hostile versions of a safetensors file."""
    header, data = header_of(file)
    header.pop("__metadata__", None)
    name, other = sorted(header)[:2]
    facts = header[name]
    start, end = facts["data_offsets"]
    whole = file.read_bytes()

    def change(**changes: Any) -> bytes:
        return with_header(header | {name: facts | changes}, data)

    return {
        "empty": b"",
        "seven bytes": whole[:7],
        "length beyond the file": struct.pack("<Q", len(whole)) + whole[8:],
        "length of 2**63": struct.pack("<Q", 2**63) + whole[8:],
        "length of 2**64 - 1": struct.pack("<Q", 2**64 - 1) + whole[8:],
        "length 0": struct.pack("<Q", 0) + whole[8:],
        "truncated data": whole[:-1],
        "truncated header": whole[:50],
        "more data": whole + b"x",
        "no JSON": struct.pack("<Q", 5) + b"{abc}" + data,
        "nested": struct.pack("<Q", 200_000) + b"[" * 200_000,
        "overlap": with_header(header | {name: header[other] | {"shape": facts["shape"]}}, data),
        "beyond the end": change(data_offsets=[start, end + 2**40]),
        "negative": change(data_offsets=[-4, end]),
        "backwards": change(data_offsets=[end, start]),
        "huge shape": change(shape=[2**62, 2**62]),
        "other shape": change(shape=[1, *facts["shape"], 1]),
        "other size": change(shape=[1]),
        "negative shape": change(shape=[-1, -1]),
        "integers": change(dtype="I32"),
        "unknown dtype": change(dtype="PICKLE"),
        "no dtype": with_header(header | {name: {"data_offsets": [start, end]}}, data),
        "missing": with_header({k: v for k, v in header.items() if k != name}, data),
        "extra": with_header(
            header | {"evil\nname": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}, data
        ),
    }


ATTACKS = [
    *("empty", "seven bytes", "length beyond the file", "length of 2**63", "length of 2**64 - 1"),
    *("length 0", "truncated data", "truncated header", "more data", "no JSON", "nested"),
    *("overlap", "beyond the end", "negative", "backwards", "huge shape", "other shape"),
    *("other size", "negative shape", "integers", "unknown dtype", "no dtype", "missing", "extra"),
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_hostile_weights_are_refused_in_one_line(
    attack: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = copy(folders["llama2"], tmp_path / "changed")
    files = attacks(folder / "model.safetensors")
    assert set(files) == set(ATTACKS)
    (folder / "model.safetensors").write_bytes(files[attack])
    with pytest.raises(ModelError) as error:
        load_pretrained(folder)
    assert "\n" not in error.value.message and len(error.value.message) < 700
    assert str(folder) in error.value.message


@pytest.mark.parametrize(
    "place",
    ["../model.safetensors", "/etc/passwd", "", 7, "a/b.safetensors", "x.bin", "a\n.safetensors"],
)
def test_an_index_names_files_of_its_folder(
    place: Any, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = copy(folders["llama2"], tmp_path / "changed")
    (folder / "model.safetensors").rename(tmp_path / "model.safetensors")
    index = {"weight_map": {"lm_head.weight": place}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"index\.json") as error:
        load_pretrained(folder)
    assert "\n" not in error.value.message


def test_an_index_has_to_agree_with_its_files(folders: dict[str, Path], tmp_path: Path) -> None:
    make_theirs("llama2").save_pretrained(tmp_path / "parts", max_shard_size="20KB")
    path = tmp_path / "parts" / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    first, *_ = sorted(set(index["weight_map"].values()))
    path.write_text(json.dumps({"weight_map": index["weight_map"] | {"made.up": first}}))
    with pytest.raises(ModelError, match=r"'made\.up' is not in the file named by"):
        load_pretrained(tmp_path / "parts")
    (tmp_path / "parts" / first).unlink()
    with pytest.raises(ModelError, match=f"no such file: .*{first}"):
        load_pretrained(tmp_path / "parts")


def test_folders_without_weights_that_are_read(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copy(folders["gpt2"], tmp_path / "changed")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="holds an adapter"):
        load_pretrained(folder)
    (folder / "adapter_config.json").unlink()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickled weights are not read"):
        load_pretrained(folder)
    with pytest.raises(ModelError, match=r"no model"):
        load_pretrained(tmp_path / "nothing")
    os.mkfifo(folder / "model.safetensors")  # opening it would wait for ever
    with pytest.raises(ModelError, match="no such file"):
        load_pretrained(folder)


def test_what_a_file_claims_takes_no_memory(folders: dict[str, Path], tmp_path: Path) -> None:
    """A process that may have 3 GiB refuses sizes of terabytes with the ordinary error."""
    huge = {"vocab_size": 2**31 - 1, "hidden_size": 2**30, "intermediate_size": 2**31 - 1}
    folder = copy(folders["llama2"], tmp_path / "changed", **huge)
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (3 * 2**30,) * 2)\n"
        "from common.errors import exit_on_error\n"
        "from common.models import load_pretrained\n"
        f"with exit_on_error(): load_pretrained({str(folder)!r})"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 2 and "config.json implies" in result.stderr, result.stderr
    assert "Traceback" not in result.stderr
