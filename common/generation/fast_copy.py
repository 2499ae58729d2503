"""A copy of a model that generates faster: same parameters, same results up to rounding.

Generating token by token, a small model spends half of its time between layers, and a large one
waits for its weights. So modules of the copy are called without the overhead of `nn.Module` around
`forward`, and large matrices are repacked into the layout that a CPU reads at memory speed.
"""

from __future__ import annotations

import platform
from typing import Protocol, TypeVar, cast, runtime_checkable

import torch
import torch.nn.functional as F
from torch import nn

M = TypeVar("M", bound=nn.Module)

# Smaller matrices fit the processor's cache and are faster without repacking.
MIN_PACKED_WEIGHTS = 2**18


@runtime_checkable
class HasFastVersion(Protocol):
    """A module that provides its own replacement in a fast copy."""

    def fast_version(self) -> nn.Module: ...


class PackedLinear(nn.Linear):
    """`nn.Linear` that multiplies by a repacked snapshot of the weight.

    PyTorch computes float32 products with MKL, which reaches a half to a third of the memory
    bandwidth for few rows and a large matrix. oneDNN, also part of PyTorch, reaches nearly all of
    it with a blocked layout. Both compute in float32 and differ only in the order of summation.
    `torch.compile` emits the same two operators for frozen weights.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        nn.Module.__init__(self)  # nn.Linear's would create parameters
        self.out_features, self.in_features = weight.shape
        self.weight, self.bias = cast(nn.Parameter, weight), cast(nn.Parameter, bias)
        self.blocks = torch.ops.mkldnn._reorder_linear_weight(weight.detach())

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(..., in_features) -> (..., out_features)"""
        if input.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            return F.linear(input, self.weight, self.bias)
        product = torch.ops.mkldnn._linear_pointwise(input, self.blocks, self.bias, "none", [], "")
        return cast(torch.Tensor, product)


class DirectLayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` without the dispatch overhead of `F.layer_norm`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return torch.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)


def is_worth_packing(weight: torch.Tensor) -> bool:
    """Whether multiplying a few vectors by this (out, in) matrix is faster with a packed copy."""
    return (
        _is_plain(weight)
        and weight.numel() >= MIN_PACKED_WEIGHTS
        and platform.machine().lower() in ("x86_64", "amd64")
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    )


def _is_plain(weight: torch.Tensor) -> bool:
    """Whether the tensor is in CPU memory, in float32, and neither quantised nor sharded."""
    ordinary = type(weight) in (nn.Parameter, torch.Tensor)
    return ordinary and weight.device.type == "cpu" and weight.dtype == torch.float32


def make_fast_copy(model: M) -> M:
    """Return a fast copy of `model`, which is unchanged and must be in evaluation mode.

    Modules with hooks, and compiled or scripted ones, are kept as they are.
    """
    return cast(M, _copy_of(model, {}))


def _copy_of(module: nn.Module, copies: dict[nn.Module, nn.Module]) -> nn.Module:
    if module not in copies:
        if _is_special(module):
            copies[module] = module
        elif isinstance(module, HasFastVersion) and (own := module.fast_version()) is not module:
            copies[module] = _copy_of(own, copies)
        elif type(module) is nn.Dropout:
            copies[module] = _bare(nn.Identity())
        elif type(module) is nn.Linear and _is_plain(module.weight):
            copies[module] = _fast_linear(module)
        else:
            kind = DirectLayerNorm if type(module) is nn.LayerNorm else type(module)
            copies[module] = copy = _bare(module, kind)
            copy._modules = {
                name: None if child is None else _copy_of(child, copies)
                for name, child in module._modules.items()
            }
            # Plain attributes avoid nn.Module's look-up in three dictionaries.
            copy.__dict__ |= copy._parameters | copy._buffers | copy._modules
    return copies[module]


def _fast_linear(linear: nn.Linear) -> nn.Module:
    if is_worth_packing(linear.weight):
        return _bare(PackedLinear(linear.weight, linear.bias))
    copy = _bare(linear)
    # The same matrix in column-major order, which MKL reads faster for few rows.
    weight = linear.weight.detach().t().contiguous().t()
    copy.__dict__ |= {"weight": weight, "bias": linear.bias}
    return copy


def _is_special(module: nn.Module) -> bool:
    """Whether a call does more than `forward` of the module's class."""
    kind = type(module)
    return (
        bool(module._forward_hooks or module._forward_pre_hooks)
        or isinstance(module, torch.jit.ScriptModule)
        or kind.__call__ is not nn.Module.__call__
        or "forward" in module.__dict__
        or module._compiled_call_impl is not None
        or hasattr(kind.__init_subclass__, "__func__")  # subclassing has side effects
    )


def _bare(module: nn.Module, kind: type[nn.Module] | None = None) -> nn.Module:
    """A shallow copy of `module`, perhaps as a subclass, that bypasses `nn.Module.__call__`."""
    kind = kind or type(module)
    if kind not in _bare_classes:
        _bare_classes[kind] = type(kind.__name__, (kind,), {"__call__": kind.forward})
    bare = _bare_classes[kind].__new__(_bare_classes[kind])
    bare.__dict__ = module.__dict__.copy()
    return bare


_bare_classes: dict[type[nn.Module], type[nn.Module]] = {}
