"""Quantise weights to 8 or 4 bits: a quarter or a sixth of the file, and less memory to read per token.

Symmetric round-to-nearest: each group of weights w has a scale s = max|w| / q, and is stored as
integers round(w / s) from -q to q; q is 127 (int8) or 7 (int4). An int8 group is a row of the
matrix, an output channel (Jacob et al. 2018, "Quantization and Training of Neural Networks for
Efficient Integer-Arithmetic-Only Inference", section 2.1; Dettmers et al. 2022, "LLM.int8()",
section 2). An int4 group is 32 or 128 neighbours of a row (Shen et al. 2020, "Q-BERT", section
3.3). It uses no calibration data: the baseline RTN of Frantar et al. 2022, "GPTQ".

`nn.Linear` becomes int8 or int4, `nn.Embedding` always int8; biases, norms and LSTM weights are
unchanged. Activations are float32, and results are exactly those of the rounded weights, except in
generation (see generation/fast_copy.py): small matrices are dequantised once, and large ones are
multiplied directly on CPUs with bfloat16 instructions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from common.errors import ConfigError, ModelError
from common.generation.fast_copy import MIN_PACKED_WEIGHTS
from common.models.quantization import Quantization

_FEW_ROWS = 4  # up to this the kernels are faster than dequantising for a dense product


def quantize(model: nn.Module, how: Quantization) -> None:
    """Quantise the large matrices of `model` in place; it can no longer be trained.

    Raises ModelError if it is already quantised, or if a group size does not divide its rows.
    """
    if getattr(model, "quantization", None) is not None:
        raise ModelError("the model is already quantised", "quantise the original model")
    if getattr(model, "lora", None) is not None:
        raise ModelError("the model has LoRA adapters", "merge them first: merge_lora(model)")
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear:
            replacement: nn.Module = QuantizedLinear(module, how, name)
        elif type(module) is nn.Embedding:
            replacement = QuantizedEmbedding(module)
        else:
            continue
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, replacement)
    model.quantization = asdict(how)  # type: ignore[assignment]  # no module, no tensor


def quantize_as_saved(model: nn.Module, saved: Mapping[str, Any]) -> None:
    """Convert `model` to the `quantization` of a checkpoint, before loading its weights."""
    if getattr(model, "quantization", None) == saved:
        return
    try:
        how = Quantization(**saved)
    except (TypeError, ConfigError) as error:
        raise ModelError(f"invalid quantisation {saved!r}") from error
    quantize(model, how)


def to_levels(
    weight: torch.Tensor, bits: int, group_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(out, in) float -> levels (out, in) int8, and scales (out, in / group_size) of its dtype."""
    largest = 2 ** (bits - 1) - 1
    groups = weight.detach().reshape(len(weight), -1, group_size)
    scales = groups.abs().amax(dim=2) / largest
    scales = scales.clamp(min=torch.finfo(scales.dtype).tiny)  # for a group of zeros
    levels = (groups / scales[..., None]).round().clamp(-largest, largest)
    return levels.flatten(1).to(torch.int8), scales


def from_levels(levels: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Inverse of `to_levels`: a matrix (out, in) in the dtype of the scales."""
    groups = levels.reshape(*scales.shape, -1).to(scales.dtype)
    return groups.mul_(scales[..., None]).flatten(1)


def pack_int4(levels: torch.Tensor) -> torch.Tensor:
    """(out, in) int8 from -8 to 7 -> (out, in / 2) uint8: the even columns in the low halves."""
    unsigned = (levels + 8).to(torch.uint8)
    return unsigned[:, ::2] | (unsigned[:, 1::2] << 4)


def unpack_int4(packed: torch.Tensor) -> torch.Tensor:
    """The inverse of `pack_int4`."""
    # Each half separately: PyTorch's ONNX exporter treats a shifted uint8 as an int8.
    halves = [(packed & 15).to(torch.int8), (packed >> 4).to(torch.int8)]
    return torch.stack(halves, dim=2).flatten(1) - 8


class QuantizedLinear(nn.Module):
    """`nn.Linear` with an integer weight and scales; `weight` is dequantised."""

    quantized: torch.Tensor
    scales: torch.Tensor

    def __init__(self, linear: nn.Linear, how: Quantization, name: str = "a layer") -> None:
        """linear: the layer to replace; name: for the error if its rows do not fit the group size."""
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.how = how
        group_size = self.in_features if how.bits == 8 else how.group_size
        if self.in_features % group_size:
            raise ModelError(
                f"int4 in groups of {group_size} does not fit {name}: its rows have "
                f"{self.in_features} weights",
                "use int8, or a smaller group where that divides them",
            )
        levels, scales = to_levels(linear.weight, how.bits, group_size)
        self.register_buffer("quantized", levels if how.bits == 8 else pack_int4(levels))
        self.register_buffer("scales", scales)
        self.bias = linear.bias
        self._kernels: list[KernelLinear] = []  # at most one, created on first use

    @property
    def weight(self) -> torch.Tensor:
        """(out_features, in_features), dequantised."""
        levels = self.quantized if self.how.bits == 8 else unpack_int4(self.quantized)
        return from_levels(levels, self.scales)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(..., in_features) -> (..., out_features)"""
        return F.linear(input, self.weight, self.bias)

    def fast_version(self) -> nn.Module:
        """Replacement for generation: the kernel for large matrices, else a dense copy."""
        if not self._kernels and self._kernel_fits():
            self._kernels.append(KernelLinear(self))
        if self._kernels:
            return self._kernels[0]
        with torch.device("meta"):  # skip initialising a weight
            dense = nn.Linear(self.in_features, self.out_features, bias=False)
        dense.weight, dense.bias = nn.Parameter(self.weight, requires_grad=False), self.bias
        return dense

    def _kernel_fits(self) -> bool:
        # PyTorch does not reject other shapes, and its kernel reads past their end.
        return (
            self.in_features * self.out_features >= MIN_PACKED_WEIGHTS
            and self.in_features % 32 == 0
            and self.out_features % 16 == 0
            and self.scales.device.type == "cpu"
            and self.scales.dtype == torch.float32
            and _multiplies_bfloat16()
        )

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self._kernels.clear()
        super()._load_from_state_dict(*arguments)


class KernelLinear(nn.Module):
    """A QuantizedLinear that multiplies a few vectors with PyTorch's kernels.

    They read the quantised weights directly, and round vectors, scales and products to bfloat16.
    """

    def __init__(self, source: QuantizedLinear) -> None:
        super().__init__()
        self.out_features, self.in_features = source.out_features, source.in_features
        self.how, self.bias = source.how, source.bias
        self._levels = source.quantized  # int4 is packed in pairs
        self._scales = source.scales
        scales = self._scales.to(torch.bfloat16)
        if self.how.bits == 8:
            self._weight, self._factors = self._levels, scales[:, 0].contiguous()
        else:
            levels = unpack_int4(self._levels).to(torch.int32) + 8
            self._weight = torch._convert_weight_to_int4pack_for_cpu(levels, 1)
            with_zeros = torch.stack([scales.t(), torch.zeros_like(scales.t())], dim=2)
            self._factors = with_zeros.contiguous()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(..., in_features) -> (..., out_features)"""
        if input.numel() > _FEW_ROWS * self.in_features:
            levels = self._levels if self.how.bits == 8 else unpack_int4(self._levels)
            return F.linear(input, from_levels(levels, self._scales), self.bias)
        rows = input.reshape(-1, self.in_features).to(torch.bfloat16)
        if self.how.bits == 8:
            product = torch._weight_int8pack_mm(rows, self._weight, self._factors)
        else:
            product = torch._weight_int4pack_mm_for_cpu(
                rows, self._weight, self.how.group_size, self._factors
            )
        product = product.to(input.dtype).view(*input.shape[:-1], self.out_features)
        return product if self.bias is None else product + self.bias


class QuantizedEmbedding(nn.Module):
    """`nn.Embedding` with int8 rows and a scale each; `weight` is dequantised."""

    quantized: torch.Tensor
    scales: torch.Tensor

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = embedding.weight.shape
        levels, scales = to_levels(embedding.weight, 8, self.embedding_dim)
        self.register_buffer("quantized", levels)
        self.register_buffer("scales", scales)

    @property
    def weight(self) -> torch.Tensor:
        """(num_embeddings, embedding_dim), dequantised."""
        return from_levels(self.quantized, self.scales)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(...) int64 -> (..., embedding_dim)"""
        return self.quantized[input].to(self.scales.dtype) * self.scales[input]

    def fast_version(self) -> nn.Module:
        """Replacement for generation: a dense copy of a small table, which may also be the output."""
        if self.quantized.numel() >= MIN_PACKED_WEIGHTS:
            return self
        return nn.Embedding(self.num_embeddings, self.embedding_dim, _weight=self.weight)


def _multiplies_bfloat16() -> bool:
    """Whether this CPU has bfloat16 instructions, without which the kernels are slower than float32."""
    return cast(bool, torch.ops.mkldnn._is_mkldnn_bf16_supported())
