"""The loss of next-token prediction, the one definition that models and evaluation share."""

from __future__ import annotations

import torch
import torch.nn.functional as F

IGNORE_INDEX = -100  # the label that is not predicted, as in PyTorch and Hugging Face


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
    logits = logits[:, :-1]
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    targets = labels[:, 1:]
    total = F.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
    )
    return total / (targets != IGNORE_INDEX).sum().clamp(min=1)
