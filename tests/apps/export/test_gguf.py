"""GGUF files read back by llama.cpp and by transformers, which must write what the model writes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from apps.export.config import GGUFDtype
from apps.export.gguf import DTYPES, export_gguf
from apps.export.gguf_vocabulary import UNUSED, Vocabulary, vocabulary_of
from common.data.tokenizers import BPETokenizer, CharTokenizer
from common.errors import ModelError
from common.models import BaseLanguageModel, Decoder
from tests.apps.export.conftest import CONTEXT_LENGTH, FAMILIES, random_model, trained
from tests.apps.export.llama_cpp_models import LlamaCpp

gguf = pytest.importorskip("gguf")

PROMPT = "the cat"
NEW_TOKENS = 24
# Of log-probabilities. llama.cpp computes GELU by a table of half floats, and multiplies matrices
# of bf16 and q8_0 with activations rounded to the same.
TOLERANCE = {"f32": 2e-3, "f16": 5e-3, "bf16": 3e-2, "q8_0": 8e-2}


@pytest.fixture(scope="module")
def models(tokenizer: BPETokenizer) -> dict[str, Decoder]:
    return {family: trained(tokenizer, **kind) for family, kind in FAMILIES.items()}


@pytest.fixture(scope="module")
def files(
    models: dict[str, Decoder],
    tokenizer: BPETokenizer,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[tuple[str, str], Path]:
    folder = tmp_path_factory.mktemp("gguf")
    return {
        (family, dtype): export_gguf(model, tokenizer, folder / f"{family}_{dtype}.gguf", dtype)
        for family, model in models.items()
        for dtype in DTYPES
    }


def written(model: BaseLanguageModel, tokenizer: BPETokenizer) -> list[int]:
    prompt = torch.from_numpy(tokenizer.encode(PROMPT))[None]
    ids: list[int] = model.generate(prompt, NEW_TOKENS, temperature=0)[0].tolist()
    return ids[prompt.shape[1] :]


@torch.no_grad()
def log_probabilities(model: BaseLanguageModel, before: list[int], after: list[int]) -> Any:
    """(len(after), vocab_size) float64, of each token of `after`."""
    logits = model(torch.tensor([before + after]))["logits"][0].double()
    return logits[len(before) - 1 : -1].log_softmax(dim=-1).numpy()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_writes_what_the_model_writes(
    family: str,
    dtype: str,
    models: dict[str, Decoder],
    files: dict[tuple[str, str], Path],
    tokenizer: BPETokenizer,
) -> None:
    ours = written(models[family], tokenizer)
    options = {"n_predict": NEW_TOKENS, "temperature": 0, "n_probs": 400}
    answer = LlamaCpp(files[family, dtype], CONTEXT_LENGTH).post(
        "completion", prompt=PROMPT, **options
    )
    assert answer["content"] == tokenizer.decode(ours)
    expected = log_probabilities(models[family], tokenizer.encode(PROMPT).tolist(), ours)
    for row, step in zip(expected, answer["completion_probabilities"], strict=True):
        found = {entry["id"]: entry["logprob"] for entry in step["top_logprobs"]}
        assert len(found) == len(row)  # every token has one
        likely = [index for index in found if row[index] > -12]
        difference = max(abs(row[index] - found[index]) for index in likely)
        assert difference < TOLERANCE[dtype], (family, dtype, difference)


TRANSFORMERS_LACKS: dict[str, dict[str, Any]] = {
    # What its reader of GGUF leaves at the default of the published models.
    "gpt2": {"vocab_size": 0, "n_positions": CONTEXT_LENGTH},
    "llama3": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10_000.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        }
    },
    "qwen3": {"head_dim": 24},
}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_writes_what_the_model_writes(
    family: str,
    dtype: str,
    models: dict[str, Decoder],
    files: dict[tuple[str, str], Path],
    tokenizer: BPETokenizer,
) -> None:
    pytest.importorskip("accelerate", reason="transformers reads GGUF with it")
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    path = files[family, dtype]
    where: dict[str, Any] = {"gguf_file": path.name, "local_files_only": True}
    config = AutoConfig.from_pretrained(path.parent, **where)
    for key, value in TRANSFORMERS_LACKS.get(family, {}).items():
        setattr(config, key, value or tokenizer.vocab_size)
    theirs = AutoModelForCausalLM.from_pretrained(path.parent, config=config, **where)
    encode = AutoTokenizer.from_pretrained(path.parent, **where)
    inputs = encode(PROMPT, return_tensors="pt")
    output = theirs.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)[0]
    ours = written(models[family], tokenizer)
    assert encode.decode(output) == PROMPT + tokenizer.decode(ours)
    with torch.no_grad():
        found = theirs(output[None]).logits[0, -NEW_TOKENS - 1 : -1].double().log_softmax(-1)
    expected = log_probabilities(models[family], tokenizer.encode(PROMPT).tolist(), ours)
    likely = expected > -12
    tolerance = 1e-4 if dtype == "f32" else TOLERANCE[dtype]
    assert np.abs(found.numpy() - expected)[likely].max() < tolerance


YARN = {"type": "yarn", "factor": 2.0, "original_context_length": 8, "truncate": False}
WINDOW = {"local_attention": {"window": 8}}
SCALING = {"factor": 4.0, "original_context_length": 8}
TEXTS = [
    "it's the dog's, they'LL we're I'd",
    "  two  spaces\tand\n\n lines \n",
    "12345 x1y2 3.14",
    "naïve café 日本語 \U0001f600 e\u0301",
    "a\u00a0b \u2028 c",
    "!?.,;:'\"()",
    " ",
    "x" * 70,
]


@pytest.mark.parametrize("text", TEXTS)
def test_llama_cpp_has_the_same_tokens(
    text: str, files: dict[tuple[str, str], Path], tokenizer: BPETokenizer, server: LlamaCpp
) -> None:
    assert server.tokenize(text) == tokenizer.encode(text).tolist()


@pytest.fixture(scope="module")
def server(files: dict[tuple[str, str], Path]) -> Iterator[LlamaCpp]:
    yield LlamaCpp(files["llama", "f32"], CONTEXT_LENGTH)


def test_q8_0_differs_by_no_more_than_half_a_step(
    models: dict[str, Decoder], files: dict[tuple[str, str], Path]
) -> None:
    tensors = {t.name: t for t in gguf.GGUFReader(files["gpt2", "q8_0"]).tensors}
    expected = models["gpt2"].blocks[1].feedforward.output.weight.detach().double().numpy()  # type: ignore[union-attr]
    tensor = tensors["blk.1.ffn_down.weight"]
    found = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float64)
    blocks = (found - expected).reshape(-1, 32)
    largest = np.abs(expected.reshape(-1, 32)).max(axis=1, keepdims=True)
    # Half a step of max / 127, and what rounding the scale to a half float adds to 127 steps.
    assert (np.abs(blocks) <= largest * (0.5 / 127 + 2.0**-11) * 1.01).all()


@pytest.mark.slow
def test_vocabulary_is_padded_to_the_embedding(tokenizer: BPETokenizer, tmp_path: Path) -> None:
    model = trained(tokenizer, vocab_size=tokenizer.vocab_size + 14, preset="llama")
    path = export_gguf(model, tokenizer, tmp_path / "padded.gguf", "f32")
    fields = gguf.GGUFReader(path).fields
    types = fields["tokenizer.ggml.token_type"].contents()
    assert len(types) == model.vocab_size and types[-14:] == [UNUSED] * 14
    ids = tokenizer.encode(PROMPT).tolist()
    assert LlamaCpp(path, CONTEXT_LENGTH).greedy(ids, NEW_TOKENS) == written(model, tokenizer)


def test_more_tokens_than_the_model_has_are_refused(
    tokenizer: BPETokenizer, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="the model only 50"):
        export_gguf(random_model(), tokenizer, tmp_path / "a.gguf")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"preset": "char_lstm"}, "layers of attention"),
        ({"positions": "none"}, "would need positions=learned"),
        ({"positions": "rope", "bias": False}, "would need"),
        ({"activation": "relu_squared"}, "gpt2 does not compute activation=relu_squared"),
        ({"num_kv_heads": 2}, "num_kv_heads=4"),
        ({"qk_norm": True}, "qk_norm=False"),
        ({"head_size": 16}, "head_size=8"),
        ({"preset": "qwen3", "qkv_bias": True}, "qk_norm=False"),
        ({"preset": "qwen2", "rope_scaling": SCALING}, "rope_scaling.type=llama3"),
        ({"preset": "llama", "rope_scaling": YARN}, "YaRN with truncate=false"),
        ({"preset": "llama", "layers": "attention local_attention"}, "would need"),
        (
            {"preset": "llama", "mixer": "local_attention", "options": WINDOW},
            "does not compute wind",
        ),
        ({"preset": "llama", "feedforward": "mlp"}, "would need"),
        ({"preset": "smollm3", "layers": "attention nope_attention"}, "than every fourth"),
        ({"preset": "smollm3", "num_layers": 4, "bias": True}, "smollm3 does not compute biases"),
        ({"preset": "llama", "feedforward": "moe", "qk_norm": "projection"}, "moe.normalize=true"),
    ],
    ids=str,
)
def test_what_llama_cpp_cannot_compute_is_refused(
    arguments: dict[str, Any], reason: str, tokenizer: BPETokenizer, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=reason) as caught:
        export_gguf(random_model(**arguments), tokenizer, tmp_path / "a.gguf")
    assert "\n" not in caught.value.message
    assert list(tmp_path.iterdir()) == []


def test_a_model_of_another_class_is_refused(tokenizer: BPETokenizer, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no code for a BaseLanguageModel"):
        export_gguf(BaseLanguageModel(5), tokenizer, tmp_path / "a.gguf")


def test_characters_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="type 'char'"):
        export_gguf(random_model(), CharTokenizer("abc"), tmp_path / "a.gguf")


@pytest.mark.parametrize(
    ("dtype", "value", "reason"),
    [("f16", 70_000.0, "cannot represent 70000"), ("f32", float("nan"), "NaN")],
)
def test_numbers_that_do_not_fit_are_refused(
    dtype: GGUFDtype, value: float, reason: str, tokenizer: BPETokenizer, tmp_path: Path
) -> None:
    model = Decoder(tokenizer.vocab_size, num_layers=1, hidden_size=32, num_heads=2)
    with torch.no_grad():
        model.blocks[0].mixer.output.weight[3, 4] = value  # type: ignore[union-attr, index]
    with pytest.raises(ModelError, match=reason):
        export_gguf(model, tokenizer, tmp_path / "a.gguf", dtype)
    assert list(tmp_path.iterdir()) == []


def test_rows_that_no_block_fits_are_refused(tokenizer: BPETokenizer, tmp_path: Path) -> None:
    model = Decoder(tokenizer.vocab_size, num_layers=1, hidden_size=48, num_heads=2)
    with pytest.raises(ModelError, match="multiple of 32"):
        export_gguf(model, tokenizer, tmp_path / "a.gguf", "q8_0")
    with pytest.raises(ModelError, match="no GGUF type 'q3'"):
        export_gguf(model, tokenizer, tmp_path / "a.gguf", "q3")  # type: ignore[arg-type]


def test_a_full_disk_leaves_the_file_that_was_there(
    tokenizer: BPETokenizer, small_disk: Any
) -> None:
    disk = small_disk("64k")
    (disk / "a.gguf").write_bytes(b"before")
    model = Decoder(tokenizer.vocab_size, num_layers=1, hidden_size=64, num_heads=2)
    with pytest.raises(OSError):
        export_gguf(model, tokenizer, disk / "a.gguf", "f32")
    assert [path.name for path in disk.iterdir()] == ["a.gguf"]
    assert (disk / "a.gguf").read_bytes() == b"before"


def test_a_vocabulary_can_be_given(tokenizer: BPETokenizer, tmp_path: Path) -> None:
    vocabulary = vocabulary_of(tokenizer)
    assert isinstance(vocabulary, Vocabulary)
    model = Decoder(tokenizer.vocab_size, num_layers=1, hidden_size=32, num_heads=2)
    path = export_gguf(model, vocabulary, tmp_path / "a.gguf", "f16", name="mine")
    fields = gguf.GGUFReader(path).fields
    assert fields["general.name"].contents() == "mine"
