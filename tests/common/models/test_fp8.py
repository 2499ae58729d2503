"""Weights in FP8 beside the definition in float64 and transformers, and descriptions that are refused."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.errors import ModelError
from common.models import load_pretrained, weight_files
from common.models.fp8 import Fp8Blocks, parse_quantization
from common.models.weight_files import WeightFiles
from tests.common.models.test_weight_files import (
    LLAMA,
    draw,
    files,
    llama_tensors,
    write,
    write_parts,
)

__all__ = ["files"]  # a fixture
# As DeepSeek-V3 and Qwen3-8B-FP8 have it.
DEEPSEEK: dict[str, Any] = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [128, 128],
}
FP8 = torch.float8_e4m3fn
SHAPES = [(128, 256), (1, 1), (127, 129), (300, 70), (129, 1000), (5, 128), (128, 5), (256, 384)]


def quantize(
    weight: torch.Tensor, rows: int = 128, columns: int = 128
) -> tuple[torch.Tensor, torch.Tensor]:
    """Levels and scales of a matrix; the largest level of a block is 448."""
    height, width = weight.shape
    scales = torch.empty(-(-height // rows), -(-width // columns))
    levels = torch.empty(height, width, dtype=FP8)
    for row in range(scales.shape[0]):
        for column in range(scales.shape[1]):
            block = np.s_[row * rows : (row + 1) * rows, column * columns : (column + 1) * columns]
            scale = weight[block].abs().max() / 448
            scales[row, column], levels[block] = scale, (weight[block] / scale).to(FP8)
    return levels, scales


def value(byte: int) -> float:
    """A number of E4M3 by its definition: sign, 4 bits of exponent with bias 7, 3 bits of mantissa."""
    sign, exponent, mantissa = byte >> 7, byte >> 3 & 15, byte & 7
    if byte & 127 == 127:
        return float("nan")
    size = mantissa / 8 * 2**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    return -size if sign else size


VALUES = np.array([value(byte) for byte in range(256)])


def in_float64(levels: torch.Tensor, scales: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Each level times the scale of its block, element by element."""
    numbers = VALUES[levels.view(torch.uint8).numpy()]
    of_row = np.arange(levels.shape[0]) // rows
    of_column = np.arange(levels.shape[1]) // columns
    return torch.from_numpy(numbers * scales.double().numpy()[of_row[:, None], of_column])


@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("rows", "columns"), [(128, 128), (64, 32), (1, 128)])
@pytest.mark.parametrize("buffer", [1, 700, 2**22])
def test_dequantised_rows_are_those_of_float64(
    buffer: int,
    rows: int,
    columns: int,
    scale_dtype: torch.dtype,
    tmp_path: Path,
    files: ExitStack,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From any row on, of shapes that are no multiple of a block, in pieces of any size."""
    monkeypatch.setattr(weight_files, "_BUFFER", buffer)
    tensors, expected = {}, {}
    for seed, shape in enumerate(SHAPES):
        levels, scales = quantize(draw(*shape, seed=seed), rows, columns)
        name = f"model.{seed}.weight"
        tensors |= {name: levels, name + "_scale_inv": scales.to(scale_dtype)}
        expected[name] = in_float64(levels, scales.to(scale_dtype), rows, columns)
    folder = write(tmp_path / "a", tensors)
    found = WeightFiles(folder, files, "model.", Fp8Blocks(rows, columns))
    assert found.shapes == {name: tuple(matrix.shape) for name, matrix in expected.items()}
    for name, matrix in expected.items():
        torch.testing.assert_close(found.read(name).double(), matrix, rtol=1e-7, atol=0)
        for start in (0, 1, len(matrix) // 2, len(matrix)):
            part = matrix[start:]
            for into in (torch.empty(part.shape), torch.empty(part.T.shape).T):
                found.copy_rows(name, into, start)
                torch.testing.assert_close(into.double(), part, rtol=1e-7, atol=0)
            half = torch.empty(part.shape, dtype=torch.bfloat16)
            found.copy_rows(name, half, start)
            assert torch.equal(half, part.float().bfloat16())


def test_every_level(tmp_path: Path, files: ExitStack) -> None:
    """All 256, with the two that are no numbers."""
    levels = torch.arange(256, dtype=torch.uint8).view(FP8)[None]
    scales = torch.tensor([[0.5, 3.0]])
    tensors = {"a.weight": levels, "a.weight_scale_inv": scales}
    found = WeightFiles(write(tmp_path / "a", tensors), files, "", Fp8Blocks())
    expected = in_float64(levels, scales, 128, 128)
    torch.testing.assert_close(
        found.read("a.weight").double(), expected, equal_nan=True, rtol=0, atol=0
    )


def test_equal_matrices_have_equal_scales(tmp_path: Path, files: ExitStack) -> None:
    levels, scales = quantize(draw(130, 5))
    tensors = {"a.weight": levels, "a.weight_scale_inv": scales}
    tensors |= {"b.weight": levels.clone(), "b.weight_scale_inv": scales.clone()}
    tensors |= {"c.weight": levels.clone(), "c.weight_scale_inv": scales * 2}
    found = WeightFiles(write(tmp_path / "a", tensors), files, "", Fp8Blocks())
    assert found.are_equal("a.weight", "b.weight") and not found.are_equal("a.weight", "c.weight")


def contradictions() -> dict[str, tuple[dict[str, torch.Tensor], str]]:
    levels, scales = quantize(draw(130, 300))
    good = {"a.weight": levels, "a.weight_scale_inv": scales}
    cube = levels.view(torch.uint8).view(13, 10, 300).view(FP8)
    return {
        "no scales": ({"a.weight": levels}, "has no scales, 'a.weight_scale_inv'"),
        "too few scales": (good | {"a.weight_scale_inv": scales[:1].clone()}, r"\[2, 3\]"),
        "a vector of scales": (good | {"a.weight_scale_inv": scales.flatten()}, r"\[2, 3\]"),
        "scales in FP8": (good | {"a.weight_scale_inv": scales.to(FP8)}, "float8_e4m3fn"),
        "scales of floats": (good | {"a.weight": levels.float()}, "but is no tensor in FP8"),
        "scales alone": ({"a.weight_scale_inv": scales}, "but is no tensor in FP8"),
        "three dimensions": (good | {"a.weight": cube}, r"F8_E4M3 and the shape \[13, 10, 300\]"),
        "integers": ({"a.weight": levels.view(torch.int8)}, "has the dtype I8"),
        "E5M2": (good | {"a.weight": levels.to(torch.float8_e5m2)}, "has the dtype F8_E5M2"),
    }


@pytest.mark.parametrize("kind", contradictions())
def test_scales_that_do_not_fit(kind: str, tmp_path: Path, files: ExitStack) -> None:
    tensors, reason = contradictions()[kind]
    with pytest.raises(ModelError, match=reason) as error:
        WeightFiles(write(tmp_path / "a", tensors), files, "", Fp8Blocks())
    assert "\n" not in error.value.message


def test_fp8_without_a_description(tmp_path: Path, files: ExitStack) -> None:
    levels, scales = quantize(draw(130, 300))
    folder = write(tmp_path / "a", {"a.weight": levels, "a.weight_scale_inv": scales})
    with pytest.raises(ModelError, match=r"F8_E4M3, but config\.json has no quantization_config"):
        WeightFiles(folder, files, "")


def test_published_descriptions() -> None:
    assert parse_quantization(DEEPSEEK) == Fp8Blocks(128, 128)
    modules = {"modules_to_not_convert": ["lm_head", "model.layers.0.mlp.gate"]}
    assert parse_quantization(DEEPSEEK | modules | {"scale_fmt": "ue8m0"}) == Fp8Blocks()
    few = {"quant_method": "fp8", "weight_block_size": [64, 32], "modules_to_not_convert": None}
    assert parse_quantization(few) == Fp8Blocks(64, 32)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"quant_method": "gptq", "bits": 4}, "quant_method = 'gptq'"),
        ({"quant_method": "awq"}, "quant_method = 'awq'"),
        ({"quant_method": "bitsandbytes"}, "quant_method = 'bitsandbytes'"),
        ({"quant_method": "compressed-tensors"}, "quant_method = 'compressed-tensors'"),
        ({"quant_method": "mxfp4"}, "quant_method = 'mxfp4'"),
        ({"quant_method": None}, "quant_method = None"),
        ({"quant_method": ["fp8"]}, "quant_method = "),
        ({"fmt": "e5m2"}, "fmt = 'e5m2'"),
        ({"activation_scheme": "static"}, "activation_scheme = 'static'"),
        ({"weight_block_size": None}, "weight_block_size = None"),
        ({"weight_block_size": [128]}, "weight_block_size"),
        ({"weight_block_size": [128, 0]}, "weight_block_size"),
        ({"weight_block_size": [128, True]}, "weight_block_size"),
        ({"weight_block_size": [128, 128.0]}, "weight_block_size"),
        ({"weight_block_size": [128, 10**30]}, "weight_block_size"),
        ({"scale_fmt": "mx"}, "scale_fmt = 'mx'"),
        ({"expert_dtype": "fp4"}, "expert_dtype = 'fp4'"),
        ({"dequantize": 1}, "dequantize = 1"),
        ({"modules_to_not_convert": "lm_head"}, "modules_to_not_convert = 'lm_head'"),
        ({"ignored_layers": [1]}, "ignored_layers"),
        ({"kv_cache_scheme": {"a": "b" * 1000}}, "kv_cache_scheme"),
    ],
)
def test_other_descriptions_are_refused_by_their_key(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelError) as error:
        parse_quantization(DEEPSEEK | changes)
    assert f"quantization_config.{named}" in error.value.message
    assert len(error.value.message) < 200


@pytest.mark.parametrize("value", [None, [], "fp8", 8])
def test_a_description_is_an_object(value: object) -> None:
    with pytest.raises(ModelError, match=r"quantization_config = .* expected an object"):
        parse_quantization(value)


@pytest.mark.slow
def test_transformers_dequantises_to_the_same_weights(tmp_path: Path, files: ExitStack) -> None:
    """A Llama in two files, whose sizes are multiples of 128: transformers requires that."""
    import transformers

    sizes = {"hidden_size": 256, "intermediate_size": 384, "vocab_size": 100}
    config = LLAMA | sizes | {"dtype": "bfloat16", "quantization_config": DEEPSEEK}
    tensors = {}
    for name, weight in llama_tensors(config, torch.bfloat16).items():
        if name.endswith("proj.weight"):
            tensors[name], tensors[name + "_scale_inv"] = quantize(weight.float())
        else:
            tensors[name] = weight
    names = sorted(tensors)
    parts = {n: tensors[n] for n in names[::2]}, {n: tensors[n] for n in names[1::2]}
    folder = write_parts(tmp_path / "a", *parts)
    (folder / "config.json").write_text(json.dumps(config))
    theirs: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    expected = theirs.state_dict()
    found = WeightFiles(folder, files, "model.", parse_quantization(DEEPSEEK))
    assert found.dtype == torch.bfloat16 and set(found.shapes) == set(expected)
    for name, weight in expected.items():
        assert weight.dtype == torch.bfloat16
        into = torch.empty_like(weight)
        found.copy_rows(name, into)
        assert torch.equal(into, weight), name
    ids = torch.arange(64)[None]
    ours = load_pretrained(folder, dtype="auto").eval()
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.bfloat16}
    for (
        parameter
    ) in ours.parameters():  # the same weights, whose products are exact enough to compare
        parameter.data = parameter.data.float()
    with torch.no_grad():
        logits = theirs.float()(ids).logits
        assert logits.std() > 0.5
        torch.testing.assert_close(
            ours(ids)["logits"] / logits.std(), logits / logits.std(), atol=1e-4, rtol=0
        )


def test_models_in_fp8_of_any_size(tmp_path: Path) -> None:
    """transformers refuses sizes that are no multiples of a block; published models have such."""
    sizes = {"hidden_size": 192, "intermediate_size": 200}
    config = LLAMA | sizes
    tensors, plain = {}, {}
    for name, weight in llama_tensors(config, torch.float32).items():
        tensors[name] = plain[name] = weight
        if name.endswith("proj.weight"):
            tensors[name], tensors[name + "_scale_inv"] = quantize(weight)
            exact = in_float64(tensors[name], tensors[name + "_scale_inv"], 128, 128)
            plain[name] = exact.float()
    for folder, stored, description in (("a", tensors, DEEPSEEK), ("b", plain, None)):
        write(tmp_path / folder, stored)
        written = config | {"quantization_config": description}
        (tmp_path / folder / "config.json").write_text(json.dumps(written))
    quantized, expected = load_pretrained(tmp_path / "a"), load_pretrained(tmp_path / "b")
    for name, parameter in expected.named_parameters():
        torch.testing.assert_close(quantized.get_parameter(name), parameter, rtol=1e-6, atol=0)
