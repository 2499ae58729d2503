"""Weights stored as FP8 with a scale per block, as DeepSeek-V3 and Qwen3-FP8 are (DeepSeek-AI 2024, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from common.errors import ModelError

SCALE_SUFFIX = "_scale_inv"  # `X.weight` is multiplied by `X.weight_scale_inv`
_HINT = "load an unquantised version of the model, or one in FP8 with blocks"


@dataclass(frozen=True)
class Fp8Blocks:
    """Rows and columns that share a scale."""

    rows: int = 128
    columns: int = 128

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Shape of the scales of a matrix."""
        rows, columns = shape
        return -(-rows // self.rows), -(-columns // self.columns)

    def dequantize(
        self, levels: torch.Tensor, scales: torch.Tensor, start: int = 0
    ) -> torch.Tensor:
        """Multiply some rows of a matrix by the scales of their blocks, in float32.

        Args:
            levels: (rows, columns) float8_e4m3fn, the rows from `start` on.
            scales: of the whole matrix, float32, see `scale_shape`.

        Returns (rows, columns) float32.
        """
        weights = levels.float()
        rows, columns = weights.shape
        of_row = scales[torch.arange(start, start + rows) // self.rows]
        whole = columns // self.columns
        blocks = weights[:, : whole * self.columns].view(rows, whole, self.columns)
        blocks *= of_row[:, :whole, None]
        weights[:, whole * self.columns :] *= of_row[:, whole:]  # the last block may be narrower
        return weights


def parse_quantization(value: object) -> Fp8Blocks:
    """Read `quantization_config` of config.json. Raises ModelError for anything but FP8 with a scale per block."""
    if not isinstance(value, dict):
        raise _refused("", value, "expected an object")
    method = value.get("quant_method")
    if method != "fp8":
        raise _refused("quant_method", method, "not supported", _HINT)
    size = value.get("weight_block_size")
    if not (isinstance(size, list) and len(size) == 2 and all(map(_is_size, size))):
        raise _refused("weight_block_size", size, "expected the two sizes of a block", _HINT)
    for key, setting in value.items():
        _check(key, setting)
    return Fp8Blocks(*size)


# Settings with which weights are computed as here. The dtype of each tensor in the files says whether
# it is quantised; activations are not.
_SUPPORTED: dict[str, tuple[object, ...]] = {
    "fmt": ("e4m3", None),
    "activation_scheme": ("dynamic", None),
    "scale_fmt": ("float", "ue8m0", None),  # of the values; the scales themselves are floats
    "expert_dtype": ("fp8", None),
    "dequantize": (True, False, None),
}
_LISTS_OF_MODULES = ("modules_to_not_convert", "modules_to_convert", "ignored_layers")


def _check(key: str, setting: object) -> None:
    if key in ("quant_method", "weight_block_size"):
        return
    if key in _LISTS_OF_MODULES:
        if setting is None or (
            isinstance(setting, list) and all(isinstance(name, str) for name in setting)
        ):
            return
        raise _refused(key, setting, "expected names of modules")
    if key not in _SUPPORTED:
        raise _refused(key, setting, "not supported", "if it changes nothing, remove it")
    if not any(type(setting) is type(one) and setting == one for one in _SUPPORTED[key]):
        raise _refused(key, setting, "not supported", _HINT)


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31


def _refused(key: str, value: Any, reason: str, hint: str = "") -> ModelError:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else f"{shown[:60]}..."
    name = f"quantization_config.{key}" if key else "quantization_config"
    return ModelError(f"config.json: {name} = {shown}: {reason}", hint)
