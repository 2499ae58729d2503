"""ONNX graphs computed by ONNX Runtime, which must give the logits of the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from apps.export.onnx import export_onnx
from common.errors import ModelError
from common.models import BaseLanguageModel, Decoder
from common.models.quantization import Quantization
from common.models.quantize import quantize
from tests.apps.export.conftest import random_model
from tests.budget import budget

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

MODELS: dict[str, dict[str, Any]] = {
    "gpt2": {"preset": "gpt2"},
    "qwen3": {"preset": "qwen3", "num_kv_heads": 2, "context_length": 2048},
    "char_lstm": {"preset": "char_lstm"},
}


def session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module", params=budget(list(MODELS)[:1], list(MODELS)))
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[BaseLanguageModel, Path]:
    model = random_model(**MODELS[request.param])
    path = tmp_path_factory.mktemp("onnx") / f"{request.param}.onnx"
    return model, export_onnx(model, path, {"experiment": "exp_001"})


@pytest.mark.attack
@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2, 3), (1, 1), (3, 1), (1, 24), (5, 17)], ids=str)
def test_onnx_runtime_gives_the_same_logits(
    shape: tuple[int, int], exported: tuple[BaseLanguageModel, Path]
) -> None:
    model, path = exported
    ids = torch.randint(0, 50, shape, generator=torch.Generator().manual_seed(1))
    (found,) = session(path).run(["logits"], {"input_ids": ids.numpy()})
    with torch.no_grad():
        expected = model(ids)["logits"].numpy()
    assert found.shape == (*shape, 50) and found.dtype == np.float32
    assert np.abs(found - expected).max() < 1e-4


@pytest.mark.attack
@pytest.mark.slow
def test_greedy_text_is_the_same(exported: tuple[BaseLanguageModel, Path]) -> None:
    model, path = exported
    run = session(path).run
    ids = np.array([[3, 1, 4, 1]])
    expected = model.generate(torch.from_numpy(ids), 16, temperature=0).numpy()
    while ids.shape[1] < expected.shape[1]:
        (logits,) = run(["logits"], {"input_ids": ids})
        ids = np.concatenate([ids, logits[:, -1].argmax(axis=-1)[:, None]], axis=1)
    assert ids.tolist() == expected.tolist()


@pytest.mark.attack
@pytest.mark.slow
def test_the_file_says_what_it_takes_and_nothing_of_where_it_was_made(
    exported: tuple[BaseLanguageModel, Path],
) -> None:
    model, path = exported
    opened = session(path)
    assert [(i.name, i.type, i.shape) for i in opened.get_inputs()] == [
        ("input_ids", "tensor(int64)", ["batch", "time"])
    ]
    assert [(o.name, o.shape) for o in opened.get_outputs()] == [("logits", ["batch", "time", 50])]
    facts = opened.get_modelmeta().custom_metadata_map
    expected = {"vocab_size": "50", "experiment": "exp_001"}
    if model.context_limit is not None:
        expected["context_length"] = str(model.context_limit)
    assert facts == expected
    assert b"decoder.py" not in path.read_bytes()
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.slow
def test_a_quantised_model_keeps_its_small_weights(tmp_path: Path) -> None:
    model = random_model(preset="llama")
    quantize(model, Quantization("int8"))
    path = export_onnx(model, tmp_path / "int8.onnx")
    ids = torch.randint(0, 50, (2, 9))
    (found,) = session(path).run(["logits"], {"input_ids": ids.numpy()})
    expected = model(ids)["logits"].detach().numpy()
    assert np.abs(found - expected).max() < 1e-4
    kinds = {tensor.data_type for tensor in onnx.load(path).graph.initializer}
    assert onnx.TensorProto.INT8 in kinds


class _DependsOnValues(BaseLanguageModel):
    def forward(
        self, input_ids: torch.Tensor, labels: torch.Tensor | None = None, cache: Any = None
    ) -> dict[str, torch.Tensor]:
        if input_ids.sum() > 3:
            return {"logits": torch.zeros(*input_ids.shape, 5)}
        return {"logits": torch.ones(*input_ids.shape, 5)}


@pytest.mark.slow
def test_a_model_that_is_no_graph_is_refused_in_one_line(tmp_path: Path) -> None:
    model = _DependsOnValues(5)
    model.weight = torch.nn.Parameter(torch.zeros(1))
    model.train()
    with pytest.raises(ModelError, match="cannot be written as a graph") as caught:
        export_onnx(model, tmp_path / "a.onnx")
    assert "\n" not in caught.value.message
    assert model.training and list(tmp_path.iterdir()) == []


def test_what_no_file_can_hold_is_refused_at_once(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = Decoder(50_000, hidden_size=4096, num_layers=4, num_heads=4)
    with pytest.raises(ModelError, match="is 2 GiB"):
        export_onnx(model, tmp_path / "a.onnx")
