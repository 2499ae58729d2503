"""Next-token loss from hidden states, without materialising all logits."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from common.data.batch import IGNORE_INDEX
from common.models.frozen import frozen_linear, sliced_linear, sliced_linear_backward
from common.models.loss import mean_cross_entropy, shifted_targets

# Logits of up to this many bytes are computed at once; above it, in chunks.
_CHUNK_BYTES = 16 * 2**20
# Rows per fp32 softmax: few enough to fit a CPU cache.
_SOFTMAX_ROWS = 32
# Tokens per block of the gradient, which is added while it is in the cache.
_VOCABULARY_SLICE = 8192


def linear_next_token_loss(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    tied: TiedGradient | None = None,
) -> torch.Tensor:
    """Compute `next_token_loss(F.linear(hidden, weight), labels)` without materialising all logits.

    With large vocabularies the logits are by far the largest tensor of training. Each chunk of rows
    is projected, its loss and gradient are computed, and it is freed; the backward pass only scales
    (as in Liger Kernel; Hsu et al. 2024, section 3.2). `F.linear_cross_entropy` with chunks does
    the same; on CPUs in bf16 it took 2.4 times as long.

    Args:
        hidden: (batch, time, hidden_size); labels as there.
        weight: (vocab_size, hidden_size); a frozen one may have any float dtype.
        tied: the `TiedGradient` that embedded the tokens, if `weight` is also the embedding.
    """
    targets = shifted_targets(labels)
    rows = hidden.flatten(0, 1)
    dtype = _compute_dtype(hidden)
    if len(rows) * len(weight) * dtype.itemsize <= _CHUNK_BYTES:
        logits = F.linear(rows, weight) if weight.requires_grad else frozen_linear(rows, weight)
        return mean_cross_entropy(logits, targets)
    chunks = math.ceil(len(rows) * len(weight) * dtype.itemsize / _CHUNK_BYTES)
    chunk = max(_SOFTMAX_ROWS, math.ceil(len(rows) / chunks))
    with torch.autocast(rows.device.type, enabled=False):
        loss: torch.Tensor = _LinearCrossEntropy.apply(rows, weight, targets, dtype, chunk, tied)  # type: ignore[no-untyped-call]  # PyTorch's apply
    return loss


class TiedGradient:
    """Accumulates the gradient of a tied embedding and output projection in one buffer.

    Autograd would hold three tensors of its size: the gradients of the projection and of the
    embedding (nearly all zeros), and their sum. Here the projection, whose backward pass comes
    first, passes its gradient on, and the embedding adds its few rows to it.
    """

    def __init__(self) -> None:
        self.of_projection: torch.Tensor | None = None

    def embed(self, input_ids: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """F.embedding(input_ids, weight)"""
        embedded: torch.Tensor = _TiedEmbedding.apply(input_ids, weight, self)  # type: ignore[no-untyped-call]  # PyTorch's apply
        return embedded


class _TiedEmbedding(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, input_ids: torch.Tensor, weight: torch.Tensor, tied: TiedGradient
    ) -> torch.Tensor:
        ctx.save_for_backward(input_ids)
        ctx.shape, ctx.dtype, ctx.tied = weight.shape, weight.dtype, tied
        return F.embedding(input_ids, weight)

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (input_ids,) = ctx.saved_tensors
        total, ctx.tied.of_projection = ctx.tied.of_projection, None
        if total is None:
            total = torch.zeros(ctx.shape, dtype=ctx.dtype, device=upstream.device)
        total.index_add_(0, input_ids.flatten(), upstream.flatten(0, 1).to(total.dtype))
        return None, total, None


def _compute_dtype(hidden: torch.Tensor) -> torch.dtype:
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


class _LinearCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of rows @ weight.T, with gradients computed in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        dtype: torch.dtype,
        chunk: int,
        tied: TiedGradient | None,
    ) -> torch.Tensor:
        grad_rows = torch.empty_like(rows) if ctx.needs_input_grad[0] else None
        grad_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        predicted = (targets != IGNORE_INDEX)[:, None]
        # Scale the small factors of the product, not the product.
        factor = predicted / predicted.sum().clamp(min=1).to(rows.dtype)
        projection = weight.to(dtype) if weight.requires_grad else weight
        nats = torch.zeros((), device=rows.device, dtype=torch.promote_types(dtype, torch.float32))
        buffer = rows.new_empty(min(chunk, len(rows)), len(weight), dtype=dtype)
        for first in range(0, len(rows), chunk):
            part = slice(first, first + chunk)
            inputs = rows[part].to(dtype)
            logits = sliced_linear(inputs, projection, into=buffer[: len(inputs)])
            losses = _softmax_minus_target_(logits, targets[part])
            nats += (losses * factor[part, 0]).sum()
            if grad_rows is not None:
                grad_rows[part] = sliced_linear_backward(logits, projection) * factor[part]
            if grad_weight is not None:
                inputs = (rows[part] * factor[part]).to(dtype)
                for begin in range(0, len(weight), _VOCABULARY_SLICE):
                    columns = slice(begin, begin + _VOCABULARY_SLICE)
                    product = logits[:, columns].t() @ inputs
                    if first == 0:
                        grad_weight[columns] = product
                    else:
                        grad_weight[columns] += product
        ctx.gradients, ctx.tied = (grad_rows, grad_weight), tied
        return nats

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the gradients of this loss have already been used")
        (grad_rows, grad_weight), ctx.gradients = ctx.gradients, None
        # On CPU reading the factor is free, and it is 1 unless gradients are accumulated.
        if upstream.device.type != "cpu" or float(upstream) != 1.0:
            for gradient in (grad_rows, grad_weight):
                if gradient is not None:
                    gradient.mul_(upstream)
        if ctx.tied is not None:
            ctx.tied.of_projection, grad_weight = grad_weight, None
        return grad_rows, grad_weight, None, None, None, None


def _softmax_minus_target_(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Replace `logits` (rows, vocab_size) by the gradient of their summed cross-entropy.

    The softmax is computed in fp32 or better. Returns (rows,) nats; rows with target -100 are
    undefined in both.
    """
    size = _SOFTMAX_ROWS if logits.device.type == "cpu" else len(logits)
    # Refuse other negative targets, as F.cross_entropy does: they would count as token 0.
    wanted = targets.where(targets != IGNORE_INDEX, 0)[:, None]
    low = logits.dtype.itemsize < 4
    scratch = torch.empty(size, logits.shape[1], device=logits.device) if low else None
    losses: list[torch.Tensor] = []
    for first in range(0, len(logits), size):
        block, token = logits[first : first + size], wanted[first : first + size]
        exact = block if scratch is None else scratch[: len(block)].copy_(block)
        above = exact.amax(dim=-1) - exact.gather(1, token)[:, 0]
        torch.softmax(exact, dim=-1, out=exact)
        # The most likely token's probability is at least 1 / vocab_size: its logarithm is exact.
        losses.append(above - exact.amax(dim=-1).log())
        exact.scatter_add_(1, token, exact.new_full((len(block), 1), -1.0))
        if scratch is not None:
            block.copy_(exact)
    return torch.cat(losses)
