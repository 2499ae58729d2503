"""Linear layers laid out for generation: each matrix is read once per token, at the speed of memory.

PyTorch gives `F.linear` in float32 to MKL, which multiplies few rows by a large matrix at a half to
a quarter of that speed. oneDNN, which PyTorch also contains, does it at nearly full speed on a copy
of the matrix in blocks of its own choice. Same float32 arithmetic, another order of summation. The
operators are those that `torch.compile` emits for frozen weights.
"""

from __future__ import annotations

import copy
import platform
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import nn

M = TypeVar("M", bound=nn.Module)

# Products with smaller matrices, which stay in the processor's cache, are faster in MKL.
MIN_WEIGHTS = 2**18
# The copies take as much memory as the weights: of larger models (2 GiB) none are made.
MAX_WEIGHTS = 2**29


class PackedLinear(nn.Linear):
    """`nn.Linear` with these very parameters, and a copy of the weight as it is now."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        nn.Module.__init__(self)  # that of nn.Linear would make parameters
        self.out_features, self.in_features = weight.shape
        self.weight, self.bias = weight, bias  # type: ignore[assignment]  # are nn.Parameter
        self.blocks = torch.ops.mkldnn._reorder_linear_weight(weight.detach())

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(..., in_features) -> (..., out_features)"""
        if input.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            return F.linear(input, self.weight, self.bias)
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            input, self.blocks, self.bias, "none", [], ""
        )
        return result


def is_worth_packing(weight: torch.Tensor) -> bool:
    """Whether the product of a few vectors with this (out, in) matrix gains from a packed copy."""
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and type(weight) in (nn.Parameter, torch.Tensor)  # no quantised or distributed one
        and weight.numel() >= MIN_WEIGHTS
        and platform.machine().lower() in ("x86_64", "amd64")
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    )


def pack_linears(model: M) -> M:
    """A twin of `model` whose linear layers are packed where that pays.

    The twin shares every other module and all parameters with `model`, which is not changed.
    """
    packed: dict[nn.Module, nn.Module] = {
        module: PackedLinear(module.weight, module.bias)
        for module in model.modules()
        # Not of subclasses, whose forward may be another; not those that somebody listens to.
        if type(module) is nn.Linear
        and not (module._forward_hooks or module._forward_pre_hooks)
        and is_worth_packing(module.weight)
    }
    return _copy(model, {name: _twin(child, packed) for name, child in model._modules.items()})


def _twin(module: nn.Module | None, twins: dict[nn.Module, nn.Module]) -> nn.Module | None:
    """What stands for `module`: its twin, itself where nothing in it has one, else a copy."""
    if module is None:
        return None
    if module not in twins:
        children = {name: _twin(child, twins) for name, child in module._modules.items()}
        changed = any(child is not module._modules[name] for name, child in children.items())
        twins[module] = _copy(module, children) if changed else module
    return twins[module]


def _copy(module: M, children: dict[str, nn.Module | None]) -> M:
    twin = copy.copy(module)
    twin._modules = children
    return twin
