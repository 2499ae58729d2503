"""The loss of next-token prediction, the one definition that models and evaluation share."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

IGNORE_INDEX = -100  # the label that is not predicted, as in PyTorch and Hugging Face

# Logits of up to so many bytes are made at once; above it they are made, used and dropped in chunks.
_CHUNK_BYTES = 64 * 2**20
# Rows whose fp32 softmax is computed together: few enough to stay in the cache of a CPU.
_SOFTMAX_ROWS = 64


def count_labels(labels: torch.Tensor) -> int:
    """How many tokens of `labels` (batch, time) are predicted: all but -100 and each first one."""
    return int((labels[:, 1:] != IGNORE_INDEX).sum())


def next_token_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats of predicting labels[:, t + 1] from logits[:, t].

    Args:
        logits: (batch, time, vocab_size), any float dtype; the loss is computed in fp32 or better.
        labels: (batch, time) int64, the input ids; -100 is not predicted.
    Returns: a scalar; 0 where nothing is to be predicted.
    """
    return _cross_entropy(logits.flatten(0, 1), shifted_targets(labels))


def linear_next_token_loss(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """`next_token_loss(F.linear(hidden, weight), labels)` without all logits in memory at once.

    With large vocabularies the logits are by far the largest tensor of training. Here a chunk of
    rows is projected, its loss and its gradient are computed, and it is dropped; so the backward
    pass has nothing left to do but to scale (as Liger Kernel does; Hsu et al. 2024, section 3.2).
    `F.linear_cross_entropy` with chunks does the same; on CPUs in bf16 it took 2.4 times as long.

    Args:
        hidden: (batch, time, hidden_size); weight: (vocab_size, hidden_size); labels as above.
    """
    targets = shifted_targets(labels)
    rows = hidden.flatten(0, 1)
    dtype = _compute_dtype(hidden)
    if len(rows) * len(weight) * dtype.itemsize <= _CHUNK_BYTES // 4:
        return _cross_entropy(F.linear(rows, weight), targets)
    chunks = math.ceil(len(rows) * len(weight) * dtype.itemsize / _CHUNK_BYTES)
    return _chunked(rows, weight, targets, dtype, max(_SOFTMAX_ROWS, math.ceil(len(rows) / chunks)))


def shifted_targets(labels: torch.Tensor) -> torch.Tensor:
    """(batch, time) labels -> (batch * time,): what each position predicts; the last one nothing."""
    return F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX).flatten()


def _cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    total = F.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX, reduction="sum")
    return total / (targets != IGNORE_INDEX).sum().clamp(min=1)


def _compute_dtype(hidden: torch.Tensor) -> torch.dtype:
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def _chunked(
    rows: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, dtype: torch.dtype, chunk: int
) -> torch.Tensor:
    with torch.autocast(rows.device.type, enabled=False):
        loss: torch.Tensor = _LinearCrossEntropy.apply(rows, weight, targets, dtype, chunk)  # type: ignore[no-untyped-call]  # PyTorch's apply
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of rows @ weight.T, its gradients computed on the way forward."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        dtype: torch.dtype,
        chunk: int,
    ) -> torch.Tensor:
        with_gradient = any(ctx.needs_input_grad[:2])
        factor = (targets != IGNORE_INDEX).sum().clamp(min=1).to(rows.dtype).reciprocal()
        projection = weight.to(dtype)
        nats = torch.zeros((), device=rows.device, dtype=torch.promote_types(dtype, torch.float32))
        grad_rows = torch.empty_like(rows) if with_gradient else None
        grad_weight: torch.Tensor | None = None
        for first in range(0, len(rows), chunk):
            part = slice(first, first + chunk)
            inputs = rows[part].to(dtype)
            logits = inputs @ projection.t()
            nats += _softmax_minus_target_(logits, targets[part])
            if grad_rows is not None:
                grad_rows[part] = (logits @ projection) * factor
                # Scaling the small factor of the product scales the large product for nothing.
                product = logits.t() @ (rows[part] * factor).to(dtype)
                if grad_weight is None:
                    grad_weight = product.to(weight.dtype)
                else:
                    grad_weight += product
        ctx.gradients = (grad_rows, grad_weight)
        return nats * factor

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the gradients of this loss were already used")
        (grad_rows, grad_weight), ctx.gradients = ctx.gradients, None
        # On CPU a look at the factor is free, and it is 1 unless gradients are accumulated.
        if upstream.device.type != "cpu" or float(upstream) != 1.0:
            grad_rows.mul_(upstream)
            grad_weight.mul_(upstream)
        return grad_rows, grad_weight, None, None, None


def _softmax_minus_target_(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Turn `logits` (rows, vocab_size) into the gradient of their summed cross-entropy, in place.

    The softmax is computed in fp32 or better. Returns the sum in nats; rows with target -100 give 0.
    """
    nats: list[torch.Tensor] = []
    step = _SOFTMAX_ROWS if logits.device.type == "cpu" else len(logits)
    for first in range(0, len(logits), step):
        block = logits[first : first + step]
        wanted = targets[first : first + step, None]
        predicted = wanted != IGNORE_INDEX
        wanted = wanted.clamp(min=0)
        exact = block.float() if block.dtype.itemsize < 4 else block
        largest, place = exact.max(dim=-1, keepdim=True)
        score = exact.gather(1, wanted)
        torch.softmax(exact, dim=-1, out=exact)
        # The most likely token's probability is at least 1 / vocab_size: its logarithm is exact.
        losses = largest - score - exact.gather(1, place).log()
        nats.append((losses * predicted).sum())
        exact.scatter_add_(1, wanted, -torch.ones_like(score))
        block.copy_(exact.masked_fill_(~predicted, 0))
    return torch.stack(nats).sum()
