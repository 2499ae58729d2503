"""The next-token loss shared by models and evaluation."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from common.data.batch import IGNORE_INDEX


def next_token_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats of predicting labels[:, t + 1] from logits[:, t].

    Args:
        logits: (batch, time, vocab_size), any float dtype; the loss is computed in fp32 or better.
        labels: (batch, time) int64, the input ids; -100 is ignored.
    Returns: a scalar; 0 if there are no targets.
    """
    return mean_cross_entropy(logits.flatten(0, 1), shifted_targets(labels))


def shifted_targets(labels: torch.Tensor) -> torch.Tensor:
    """(batch, time) labels -> (batch * time,) targets of each position; -100 for the last one."""
    return F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX).flatten()


def is_padding(labels: torch.Tensor) -> torch.Tensor:
    """(batch, time) labels -> (batch, time) bool, True from where on all labels of the row are -100.

    These tokens are not predicted, and no predicted token depends on them.
    """
    is_label = (labels != IGNORE_INDEX).flip(1)
    return (is_label.cumsum(1) == 0).flip(1)


def mean_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean in nats, in fp32 or better. logits: (n, vocab_size); targets: (n,) int64, -100 is ignored."""
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    total = F.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX, reduction="sum")
    return total / (targets != IGNORE_INDEX).sum().clamp(min=1)
