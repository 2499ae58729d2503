"""Layers whose weight is not trained, and stays in the dtype in which it is stored.

A bfloat16 weight takes 2 bytes instead of the 16 of a trained one (weight, gradient and two moments in
float32). It is computed with as if it were in float32: a product converts some rows of the weight at a time
to the dtype of the computation, and the backward pass converts them again. On a CPU this takes no longer
in float32, since the converted rows are still in the cache; in bfloat16 it does for float16 weights.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

_SLICE_BYTES = 2**23  # of converted rows


def sliced_linear(
    input: torch.Tensor, weight: torch.Tensor, into: torch.Tensor | None = None
) -> torch.Tensor:
    """F.linear(input, weight) in the dtype of `input`, perhaps written to `into`; without gradients.

    input: (n, in); weight: (out, in) of any float dtype; result: (n, out).
    """
    result = input.new_empty(len(input), len(weight)) if into is None else into
    for rows in _slices(weight, input.dtype):
        torch.mm(input, weight[rows].to(input.dtype).t(), out=result[:, rows])
    return result


def sliced_linear_backward(upstream: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The gradient of the input of `sliced_linear`: upstream @ weight in the dtype of `upstream`."""
    first, *others = _slices(weight, upstream.dtype)
    result = upstream[:, first] @ weight[first].to(upstream.dtype)
    for rows in others:
        result.addmm_(upstream[:, rows], weight[rows].to(upstream.dtype))
    return result


def _slices(weight: torch.Tensor, dtype: torch.dtype) -> list[slice]:
    """Rows to convert to `dtype` at a time: all of them if nothing is converted."""
    count = len(weight)
    if weight.dtype != dtype:
        count = max(1, _SLICE_BYTES // (weight.shape[1] * dtype.itemsize))
    return [slice(first, first + count) for first in range(0, len(weight), count)]


class _Product(torch.autograd.Function):
    """F.linear that saves the weight in its own dtype for the backward pass, not the converted copy."""

    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(weight)
        return sliced_linear(input, weight)

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, None]:
        (weight,) = ctx.saved_tensors
        return sliced_linear_backward(upstream, weight) if ctx.needs_input_grad[0] else None, None


def frozen_linear(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """F.linear(input, weight, bias), under autocast too, for a frozen weight of any float dtype."""
    kind = input.device.type
    autocast = torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind) if autocast else input.dtype
    if weight.dtype == dtype:
        return F.linear(input, weight, bias)
    rows = input.to(dtype).flatten(0, -2)
    result: torch.Tensor = _Product.apply(rows, weight)  # type: ignore[no-untyped-call]  # PyTorch's apply
    result = result.view(*input.shape[:-1], len(weight))
    return result if bias is None else result.add_(bias.to(dtype))


class FrozenLinear(nn.Module):
    """`nn.Linear` with the weight `frozen`, (out_features, in_features), of any float dtype."""

    def __init__(self, linear: nn.Linear) -> None:
        """linear: the layer to replace, whose parameters it takes over."""
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.frozen = nn.Parameter(linear.weight.detach(), requires_grad=False)
        self.bias = linear.bias

    @property
    def weight(self) -> torch.Tensor:
        """(out_features, in_features), in float32 or better."""
        return self.frozen.to(computed_dtype(self.frozen))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(..., in_features) -> (..., out_features)"""
        return frozen_linear(input, self.frozen, self.bias)


class FrozenEmbedding(nn.Module):
    """`nn.Embedding` with the weight `frozen`, (num_embeddings, embedding_dim), of any float dtype."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = embedding.weight.shape
        self.frozen = nn.Parameter(embedding.weight.detach(), requires_grad=False)

    @property
    def weight(self) -> torch.Tensor:
        """(num_embeddings, embedding_dim), in float32 or better."""
        return self.frozen.to(computed_dtype(self.frozen))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(...) int64 -> (..., embedding_dim), in float32 or better"""
        return F.embedding(input, self.frozen).to(computed_dtype(self.frozen))


def computed_dtype(weight: torch.Tensor) -> torch.dtype:
    """float32 for a weight of float32 or less, else its own dtype."""
    return torch.promote_types(weight.dtype, torch.float32)


def stored_weight(layer: nn.Module) -> torch.Tensor:
    """The weight of a layer as it is in memory: that of a frozen one in the dtype in which it is stored."""
    if isinstance(layer, FrozenLinear | FrozenEmbedding):
        return layer.frozen
    return layer.weight  # type: ignore[return-value]  # nn.Module forgets the type
