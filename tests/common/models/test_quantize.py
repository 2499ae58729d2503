"""Quantised weights against the same arithmetic in float64, and as checkpoints."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from common.errors import ConfigError, ModelError
from common.models import BaseLanguageModel, Decoder
from common.models import quantize as module
from common.models.quantization import Quantization
from common.models.quantize import (
    KernelLinear,
    QuantizedLinear,
    from_levels,
    pack_int4,
    quantize,
    to_levels,
    unpack_int4,
)
from tests.apps.export.conftest import random_model

KINDS = [Quantization("int8"), Quantization("int4", 32), Quantization("int4", 128)]
Matrix = npt.NDArray[np.float64]


def rounded(weight: Matrix, largest: int, group_size: int) -> Matrix:
    """The definition, number by number: s = max|w| / q of its group, s * round(w / s)."""
    result = np.empty_like(weight)
    for row in range(weight.shape[0]):
        for start in range(0, weight.shape[1], group_size):
            group = weight[row, start : start + group_size]
            scale = float(np.abs(group).max()) / largest
            for column, value in enumerate(group):
                result[row, start + column] = scale * round(value / scale) if scale else 0.0
    return result


def matrix(rows: int, columns: int) -> torch.Tensor:
    values = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    values[1] = 0  # a row without a scale
    values[2, 5] = 40.0  # an outlier, which makes the other levels of its group coarse
    return values


def linear(rows: int, columns: int, bias: bool = True) -> nn.Linear:
    layer = nn.Linear(columns, rows, bias=bias)
    with torch.no_grad():
        layer.weight.copy_(matrix(rows, columns))
    return layer


@pytest.mark.parametrize("how", KINDS, ids=str)
def test_weights_are_rounded_as_defined(how: Quantization) -> None:
    layer = linear(48, 256)
    group_size = 256 if how.bits == 8 else how.group_size
    largest = 127 if how.bits == 8 else 7
    expected = rounded(layer.weight.detach().double().numpy(), largest, group_size)
    found = QuantizedLinear(layer, how).weight.double().numpy()
    # Where w / s is half of a whole number in float32, it need not be in float64: one level apart.
    apart = np.abs(found - expected)
    assert (apart > 1e-5).mean() < 1e-3
    assert apart.max() < 1.01 * 40 / largest
    error = np.abs(found - layer.weight.detach().numpy()).reshape(48, -1, group_size)
    scales = np.abs(layer.weight.detach().numpy().reshape(48, -1, group_size)).max(axis=2) / largest
    assert (error.max(axis=2) <= scales / 2 + 1e-6).all()


def test_packing_keeps_every_level() -> None:
    levels = torch.arange(-8, 8, dtype=torch.int8).repeat(3, 2)
    packed = pack_int4(levels)
    assert packed.dtype == torch.uint8 and packed.shape == (3, 16)
    assert torch.equal(unpack_int4(packed), levels)
    assert packed[0, 0] == (0 | 1 << 4)  # -8 in the low half, -7 in the high one


@pytest.mark.parametrize("how", KINDS, ids=str)
@pytest.mark.parametrize("shape", [(48, 256), (1024, 256)], ids=str)
@pytest.mark.parametrize("rows", [1, 4, 7])
def test_products_are_those_of_the_rounded_weights(
    how: Quantization, shape: tuple[int, int], rows: int
) -> None:
    layer = linear(*shape)
    quantized = QuantizedLinear(layer, how)
    inputs = torch.randn(rows, 256)
    weight, bias = quantized.weight.double(), layer.bias.detach().double()
    expected = inputs.double() @ weight.t() + bias
    size = inputs.double().abs() @ weight.abs().t() + bias.abs()
    copy = quantized.fast_version()
    is_kernel = isinstance(copy, KernelLinear)
    assert not is_kernel or shape[0] == 1024
    with torch.no_grad():
        assert ((quantized(inputs[None])[0].double() - expected).abs() <= size * 1e-6).all()
        found = copy(inputs[None])[0].double()
    # The kernel rounds inputs, scales and products to 8 bits of mantissa.
    tolerance = 2.0**-7 if is_kernel and rows <= 4 else 1e-6
    assert ((found - expected).abs() <= size * tolerance).all()


@pytest.mark.parametrize("how", KINDS[:2], ids=str)
def test_the_kernel_is_used_for_large_matrices_where_the_cpu_has_it(
    how: Quantization, monkeypatch: pytest.MonkeyPatch
) -> None:
    for has_it in (True, False):
        monkeypatch.setattr(module, "_multiplies_bfloat16", lambda has_it=has_it: has_it)
        large = QuantizedLinear(nn.Linear(512, 512), how).fast_version()
        assert isinstance(large, KernelLinear) == has_it
        for outputs, inputs in ((64, 64), (513, 512), (512, 528)):
            if inputs % 32 and how.bits == 4:
                continue
            assert (
                type(QuantizedLinear(nn.Linear(inputs, outputs), how).fast_version()) is nn.Linear
            )


def test_generating_with_the_kernel_goes_on_as_the_rounded_model_would(tmp_path: Path) -> None:
    model = random_model(preset="llama", hidden_size=512, num_layers=1)
    quantize(model, Quantization("int8"))
    ids = torch.randint(0, 50, (1, 6))
    copy = model.fast_copy()
    with torch.no_grad():
        expected = model(ids[:, :1])["logits"][:, -1]
        found = copy.next_logits(ids[:, :1])
    assert 0 < float((found - expected).abs().max()) < 0.02 * float(expected.abs().max()) or (
        not module._multiplies_bfloat16()
    )
    other = random_model(preset="llama", hidden_size=512, num_layers=1)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(-1.5)
    quantize(other, Quantization("int8"))
    before = other.generate(ids, 8, temperature=0)
    other.load_checkpoint(model.save_checkpoint(tmp_path / "step_1"))
    after = other.generate(ids, 8, temperature=0)  # no kernel remembers the weights before
    assert torch.equal(after, model.generate(ids, 8, temperature=0))
    assert not torch.equal(after, before)


@pytest.mark.parametrize("preset", ["gpt2", "llama", "char_lstm"])
@pytest.mark.parametrize("how", KINDS[:2], ids=str)
def test_a_quantised_checkpoint_is_loaded_as_it_was_saved(
    preset: str, how: Quantization, tmp_path: Path
) -> None:
    original = random_model(preset=preset, hidden_size=64)
    model = copy.deepcopy(original)
    quantize(model, how)
    ids = torch.randint(0, 50, (2, 12))
    with torch.no_grad():
        expected = model(ids, ids)
    path = model.save_checkpoint(tmp_path / "step_1")
    by_class = BaseLanguageModel.load_checkpoint(path).eval()
    filled = random_model(preset=preset, hidden_size=64)
    filled.load_checkpoint(path)
    for loaded in (by_class, filled):
        assert loaded.quantization == model.quantization
        with torch.no_grad():
            assert torch.equal(loaded(ids)["logits"], expected["logits"])
            assert torch.allclose(loaded.compute_loss(ids, ids), expected["loss"], atol=1e-6)
        text = loaded.generate(ids, 10, temperature=0)
        assert torch.equal(text, model.generate(ids, 10, temperature=0))
    # As the same model with the rounded weights in float32 computes it.
    with torch.no_grad():
        for name, layer in original.named_modules():
            if isinstance(layer, nn.Linear | nn.Embedding):
                rounded_weight: Any = model.get_submodule(name).weight
                layer.weight.copy_(rounded_weight)
        assert torch.allclose(original(ids)["logits"], expected["logits"], atol=1e-4)


def test_files_are_as_small_as_they_should_be(tmp_path: Path) -> None:
    model = Decoder(64, hidden_size=256, num_layers=2, context_length=16)
    sizes = {}
    for how in (None, *KINDS):
        copied = copy.deepcopy(model)
        if how is not None:
            quantize(copied, how)
        path = copied.save_checkpoint(tmp_path / f"step_{len(sizes)}") / "model.safetensors"
        sizes[how] = path.stat().st_size
    whole = sizes.pop(None)
    # Bits per weight: 8; 4 and a float32 scale for 32; 4 and one for 128. And biases and names.
    for how, bits in zip(KINDS, (8, 5, 4.25), strict=True):
        assert bits / 32 < sizes[how] / whole < bits / 32 + 0.03


def test_what_cannot_be_quantised_is_refused() -> None:
    with pytest.raises(ConfigError, match="no quantisation 'int2'"):
        Quantization("int2")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no group size 7"):
        Quantization("int4", 7)
    with pytest.raises(ModelError, match=r"does not fit blocks\.0\.mixer\.query_key_value: .* 48"):
        quantize(random_model(hidden_size=48), Quantization("int4", 32))
    model = random_model()
    quantize(model, Quantization("int8"))
    with pytest.raises(ModelError, match="already quantised"):
        quantize(model, Quantization("int8"))


@pytest.mark.parametrize("saved", [{"kind": "int8", "more": 1}, {"kind": []}, {"group_size": 32}])
def test_a_checkpoint_that_describes_no_quantisation_is_refused(
    saved: dict[str, Any], tmp_path: Path
) -> None:
    model = random_model()
    path = model.save_checkpoint(tmp_path / "step_1", model=_identity(model, saved))
    with pytest.raises(ModelError):
        random_model().load_checkpoint(path)


def _identity(model: Decoder, quantization: dict[str, Any]) -> dict[str, Any]:
    from common.models.checkpoint import identity_of

    return {**identity_of(model), "quantization": quantization}


def test_levels_of_zeros_are_zeros() -> None:
    levels, scales = to_levels(torch.zeros(2, 64), 4, 32)
    assert torch.equal(from_levels(levels, scales), torch.zeros(2, 64))
