"""tools/export.py over a trained run, as users type it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from common.models.hub.load import load_pretrained
from common.utils.paths import get_runs_dir
from tests.untrained_run import make_run

TOOL = "tools/export.py"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("the cat sat on the mat and the dog saw it.\n" * 40)
    return path


@pytest.mark.slow
def test_a_run_becomes_a_gguf_file(text: Path, tmp_path: Path, run_tool: Any) -> None:
    gguf = pytest.importorskip("gguf")
    _, model, data = make_run("a", text, "bpe")
    result = run_tool(TOOL, "--name", "a", "--format", "gguf")
    assert result.returncode == 0, result.stderr
    path = get_runs_dir() / "a" / "exports" / "a-f16.gguf"
    assert "a-f16.gguf" in result.stdout
    result = run_tool(
        TOOL, "--name", "a", "--format=gguf", "--dtype=f32", "--output=mine.gguf", cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    for file, kind in ((path, "F16"), (tmp_path / "mine.gguf", "F32")):
        reader = gguf.GGUFReader(file)
        assert reader.fields["general.name"].contents() == "a"
        assert len(reader.fields["tokenizer.ggml.tokens"].contents()) == data.tokenizer.vocab_size
        embedding = reader.tensors[0]
        assert (embedding.name, embedding.tensor_type.name) == ("token_embd.weight", kind)
        expected = model.state_dict()["token_embedding.weight"]
        found = torch.from_numpy(embedding.data.copy()).float()
        assert torch.allclose(found, expected, atol=1e-3)


@pytest.mark.slow
def test_a_run_becomes_an_onnx_file_with_its_tokenizer(text: Path, run_tool: Any) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    _, model, data = make_run("a", text)
    result = run_tool(TOOL, "--name", "a", "--format", "onnx")
    assert result.returncode == 0 and result.stderr == "", result.stderr
    folder = get_runs_dir() / "a" / "exports"
    session = onnxruntime.InferenceSession(folder / "a.onnx", providers=["CPUExecutionProvider"])
    ids = data.tokenizer.encode("the cat")[None]
    (found,) = session.run(["logits"], {"input_ids": ids})
    expected = model(torch.from_numpy(ids))["logits"].detach()
    assert torch.allclose(torch.from_numpy(found), expected, atol=1e-4)
    assert session.get_modelmeta().custom_metadata_map["end_of_text"] == "0"
    assert json.loads((folder / "a.tokenizer.json").read_text())["type"] == "char"


@pytest.mark.slow
def test_a_run_becomes_a_folder_for_transformers(text: Path, run_tool: Any) -> None:
    _, model, _ = make_run("a", text, "bpe")
    result = run_tool(TOOL, "--name", "a", "--format", "hub")
    assert result.returncode == 0, result.stderr
    read = load_pretrained(get_runs_dir() / "a" / "exports" / "a").eval()
    ids = torch.randint(0, 50, (2, 9))
    assert torch.allclose(read(ids)["logits"], model.eval()(ids)["logits"], atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--name", "b", "--format", "gguf"], "there is no experiment 'b'"),
        (["--name", "a", "--format", "gguf"], "tokenizer of the type 'char'"),
        (["--name", "a", "--format", "gguf", "--dtype", "q3"], "does not support --dtype q3"),
        (["--name", "a", "--format", "onnx", "--dtype", "f16"], "does not support --dtype f16"),
        (["--name", "a", "--format", "hub", "--checkpoint", "7"], "no checkpoint '7'"),
        (["--name", "a", "--format", "pickle"], "invalid choice: 'pickle'"),
        (["--name", "a"], "--format"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_wrong_is_told_in_one_line(
    arguments: list[str], reason: str, text: Path, run_tool: Any
) -> None:
    make_run("a", text)
    result = run_tool(TOOL, *arguments)
    assert result.returncode == 2 and result.stdout == ""
    assert reason in result.stderr and "Traceback" not in result.stderr
    assert not (get_runs_dir() / "a" / "exports").exists()


def test_without_the_package_the_way_to_install_it_is_told(
    text: Path, tmp_path: Path, run_tool: Any
) -> None:
    make_run("a", text, "bpe")
    (tmp_path / "hidden" / "gguf").mkdir(parents=True)
    (tmp_path / "hidden" / "gguf" / "__init__.py").write_text("raise ImportError('not here')")
    path = f"{tmp_path / 'hidden'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    result = run_tool(TOOL, "--name", "a", "--format", "gguf", env={"PYTHONPATH": path})
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("error [package]") and "[export]" in result.stderr
