"""Each format, at the widths and shapes of real models, is run by another program before it is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import apps.export.gguf as gguf_module
import apps.export.hub_format as hub_module
from apps.export.config import GGUFDtype, Pruning
from apps.export.gguf import export_gguf
from apps.export.gguf_vocabulary import Vocabulary, vocabulary_of
from apps.export.hub_format import save_pretrained
from apps.export.onnx import export_onnx
from apps.export.prune import prune
from apps.export.readback import check_logits, probe, relative_error
from common.data.tokenizers import BPETokenizer
from common.errors import ModelError
from common.models import BaseLanguageModel, Decoder, load_pretrained
from common.models.quantization import Quantization
from common.models.quantize import pack_int4, quantize, unpack_int4
from tests.apps.export.conftest import random_model
from tests.budget import repeat

# Of each family, with the shapes that differ most: shared keys, wide heads, tied, odd widths.
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2_32": {"preset": "gpt2", "hidden_size": 32},
    "gpt2_256": {"preset": "gpt2", "hidden_size": 256, "tie_embeddings": False},
    "gpt2_768": {"preset": "gpt2", "hidden_size": 768, "num_heads": 12},
    "llama_64": {"preset": "llama", "hidden_size": 64, "num_kv_heads": 1},
    "llama_768": {"preset": "llama", "hidden_size": 768, "num_heads": 12, "num_kv_heads": 4},
    "qwen2_96": {
        **{"preset": "qwen2", "hidden_size": 96, "num_heads": 3, "num_kv_heads": 1},
        **{"tie_embeddings": True, "intermediate_size": 224},
    },
    "qwen3_512": {
        **{"preset": "qwen3", "hidden_size": 512, "num_heads": 4, "num_kv_heads": 2},
        **{"head_size": 64, "intermediate_size": 160},
    },
}
MIXERS = SHAPES | {"lstm_128": {"preset": "char_lstm", "hidden_size": 128}}


def model_of(shape: str) -> Decoder:
    """A layer of it, its weights as large as training makes them."""
    arguments = {"num_heads": 4, "context_length": 40} | MIXERS[shape]
    torch.manual_seed(0)
    model = Decoder(50, **arguments | {"num_layers": 1})
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.1 if parameter.ndim == 1 else 1 / parameter.shape[-1] ** 0.5
            parameter.add_(torch.randn_like(parameter), alpha=scale)
    return model.eval()


@pytest.mark.slow
def test_a_quantised_lstm_computes_texts_of_any_length(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model = model_of("lstm_128")
    quantize(model, Quantization("int8"))
    session = onnxruntime.InferenceSession(export_onnx(model, tmp_path / "a.onnx"))
    for shape in ((1, 1), (3, 7), (2, 40)):
        ids = torch.randint(0, 50, shape)
        (logits,) = session.run(["logits"], {"input_ids": ids.numpy()})
        assert relative_error(torch.from_numpy(logits), model(ids)["logits"]) < 1e-4


@pytest.fixture(scope="module")
def vocabulary(tokenizer: BPETokenizer) -> Vocabulary:
    return vocabulary_of(tokenizer)


@pytest.mark.slow
@repeat(
    ("shape", "kind"),
    [
        *(("llama_64", "int8"), ("gpt2_256", "int4"), ("qwen3_512", "f32")),
        *(("gpt2_32", "f32"), ("lstm_128", "f32"), ("qwen2_96", "int8"), ("gpt2_768", "int8")),
        *(("llama_64", "int4"), ("qwen2_96", "int4"), ("llama_768", "int4")),
    ],
    few=2,
)
def test_onnx_runtime_gives_the_logits_at_every_width(
    shape: str, kind: str, tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model: BaseLanguageModel = model_of(shape)
    if kind != "f32":
        quantize(model, Quantization(kind))  # type: ignore[arg-type]  # one of the parameters
    path = export_onnx(model, tmp_path / "a.onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    ids = torch.randint(0, 50, (3, 11))
    (found,) = session.run(["logits"], {"input_ids": ids.numpy()})
    assert torch.allclose(torch.from_numpy(found), model(ids)["logits"].detach(), atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        *((shape, "f32") for shape in SHAPES),
        *(("gpt2_768", "f16"), ("qwen3_512", "bf16"), ("llama_768", "q8_0"), ("qwen2_96", "q8_0")),
    ],
)
def test_llama_cpp_gives_the_logits_at_every_width(
    shape: str, dtype: GGUFDtype, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    pytest.importorskip("gguf")
    arguments = {"num_heads": 4, "context_length": 40} | SHAPES[shape] | {"num_layers": 1}
    torch.manual_seed(0)
    model = Decoder(len(vocabulary.tokens), **arguments)
    path = export_gguf(model, vocabulary, tmp_path / "a.gguf", dtype)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_transformers_gives_the_logits_at_every_width(shape: str, tmp_path: Path) -> None:
    model = model_of(shape)
    read = load_pretrained(save_pretrained(model, tmp_path / "a"))
    ids = torch.randint(0, 50, (3, 11))
    assert torch.equal(read(ids)["logits"], model(ids)["logits"])


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("shape", ["gpt2_256", "llama_64", "qwen2_96", "lstm_128"])
def test_pruned_and_quantised_checkpoints_give_the_logits_at_every_width(
    shape: str, kind: str, tmp_path: Path
) -> None:
    model: BaseLanguageModel = model_of(shape)
    if shape != "lstm_128":  # it has no linear layers
        model = prune(model, Pruning("magnitude", 0.3))
    quantize(model, Quantization(kind))  # type: ignore[arg-type]  # one of the parameters
    model.save_checkpoint(tmp_path / "a")
    read = type(model).load_checkpoint(tmp_path / "a")
    check_logits(probe(model), [logits for _, logits in probe(read)], "f32", "we")


@pytest.mark.parametrize("rows,columns", [(1, 2), (3, 64), (256, 256), (768, 3072)])
def test_int4_is_unpacked_as_it_was_packed(rows: int, columns: int) -> None:
    levels = torch.randint(-8, 8, (rows, columns), dtype=torch.int8)
    assert torch.equal(unpack_int4(pack_int4(levels)), levels)


def test_a_gguf_file_that_llama_cpp_computes_otherwise_is_not_written(
    vocabulary: Vocabulary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gguf")
    pytest.importorskip("xllamacpp")
    model = random_model(preset="llama", norm_eps=1e-6)
    model = Decoder(len(vocabulary.tokens), **model.arguments | {"hidden_size": 64})
    real = gguf_module.gguf_tensors

    def swapped(*arguments: Any) -> Any:  # gate and input: files of the right names and shapes
        for name, tensor in real(*arguments):
            yield name, tensor.flip(0) if "attn_q" in name else tensor

    monkeypatch.setattr(gguf_module, "gguf_tensors", swapped)
    with pytest.raises(
        ModelError, match=r"nothing was written: llama.cpp computes different logits"
    ):
        export_gguf(model, vocabulary, tmp_path / "a.gguf", "f32")
    assert list(tmp_path.iterdir()) == []


def test_a_gguf_file_that_llama_cpp_refuses_is_not_written(
    vocabulary: Vocabulary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gguf")
    pytest.importorskip("xllamacpp")
    model = Decoder(len(vocabulary.tokens), preset="llama", hidden_size=64, num_layers=1)
    real = gguf_module.gguf_tensors
    kept = lambda *arguments: (t for t in real(*arguments) if "ffn_up" not in t[0])  # noqa: E731
    monkeypatch.setattr(gguf_module, "gguf_tensors", kept)
    with pytest.raises(ModelError, match=r"llama.cpp rejects it: .*ffn_up"):
        export_gguf(model, vocabulary, tmp_path / "a.gguf", "f32")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_transformers_computes_otherwise_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = hub_module.hub_config
    monkeypatch.setattr(hub_module, "hub_config", lambda model: real(model) | {"rope_theta": 9.0})
    with pytest.raises(ModelError, match=r"nothing was written: transformers .* different logits"):
        save_pretrained(random_model(preset="llama"), tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


class _Random(BaseLanguageModel):
    """Computes something else each time."""

    def forward(
        self, input_ids: torch.Tensor, labels: torch.Tensor | None = None, cache: Any = None
    ) -> dict[str, torch.Tensor]:
        return {"logits": torch.rand(*input_ids.shape, 5) + self.weight}


@pytest.mark.slow
def test_a_graph_that_computes_something_else_is_not_written(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = _Random(5)
    model.weight = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(ModelError, match=r"nothing was written: ONNX Runtime .* different logits"):
        export_onnx(model, tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_diverged_model_is_written_in_no_format(tmp_path: Path) -> None:
    model = random_model(preset="llama")
    with torch.no_grad():
        model.final_norm.weight[0] = float("nan")  # type: ignore[index,operator]  # an RMSNorm
    with pytest.raises(ModelError, match="NaN"):
        save_pretrained(model, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_the_error_is_relative_to_how_far_logits_are_spread() -> None:
    torch.manual_seed(0)
    expected = 7 * torch.randn(2, 9, 50, dtype=torch.float64) - 100
    noise = torch.randn_like(expected)
    assert relative_error(expected + 0.07 * noise, expected) == pytest.approx(0.01, rel=0.1)
    expected[..., 3] = -torch.inf
    assert relative_error(expected.clone(), expected) == 0
    assert relative_error(expected.nan_to_num(neginf=-100), expected) != 0  # NaN
