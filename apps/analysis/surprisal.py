"""The surprisal of each token of a text, and the most likely alternatives.

The surprisal of a token is -ln of its probability under the model (Shannon 1948); its mean over a
text is the loss. Windows are those of `Evaluator`, so that the numbers agree.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from common.data.batch import IGNORE_INDEX
from common.data.loader import EvalWindows
from common.data.token_files import Tokens
from common.errors import ModelError
from common.models.base import BaseLanguageModel
from common.training.prediction_metrics import Counts, Floats, max_rows

TOP_K = 5
_MOST_ROWS = 64  # per forward pass


@dataclass(frozen=True)
class Surprisal:
    """One entry per token; the first, unpredicted token has NaN, -1 and -1."""

    ids: Counts  # (tokens,)
    nats: Floats  # (tokens,)
    ranks: Counts  # (tokens,) number of more likely tokens
    context: Counts  # (tokens,) number of tokens in the context
    top_ids: Counts  # (tokens, k) the most likely tokens, in descending order
    top_probabilities: Floats  # (tokens, k)
    num_bytes: int  # in the predicted tokens

    @property
    def bits(self) -> Floats:
        bits: Floats = self.nats / math.log(2)
        return bits

    @property
    def loss(self) -> float:
        """Mean nats per predicted token."""
        return float(self.nats[1:].mean())

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @property
    def bits_per_byte(self) -> float | None:
        """Bits per byte; None if the tokens have no bytes."""
        return float(self.bits[1:].sum()) / self.num_bytes if self.num_bytes else None

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy."""
        return float((self.ranks[1:] == 0).mean())


@torch.no_grad()
def measure_surprisal(
    model: BaseLanguageModel,
    tokens: Tokens | Counts,
    *,
    token_bytes: Any,
    context_length: int,
    top_k: int = TOP_K,
) -> Surprisal:
    """Compute the surprisal of every token but the first, given those before it in its window.

    Args:
        tokens: (tokens,) ids, at least two.
        token_bytes: (vocab_size,) bytes per token (`Tokenizer.token_bytes`).
        context_length: tokens per window; windows are consecutive.
        top_k: number of alternatives to keep.
    Raises DataError for fewer than two tokens, ModelError if the model predicts NaN, gives a token
    probability 0 or does not accept such a window. The softmax is computed in float64.
    """
    ids = np.asarray(tokens).astype(np.int64)
    top_k = min(top_k, model.vocab_size)
    pieces = list(_predictions(model, ids, context_length, top_k))
    nats, ranks, top_ids, top_probabilities = (
        np.concatenate(piece) for piece in zip(*pieces, strict=True)
    )
    context = np.arange(len(ids) - 1) % (context_length - 1) + 1
    return Surprisal(
        ids,
        np.concatenate([[np.nan], nats]),
        np.concatenate([[-1], ranks]),
        np.concatenate([[0], context]),
        np.concatenate([np.full((1, top_k), -1), top_ids]),
        np.concatenate([np.full((1, top_k), np.nan), top_probabilities]),
        int(np.asarray(token_bytes)[ids[1:]].sum()),
    )


def _predictions(
    model: BaseLanguageModel, ids: Counts, context_length: int, top_k: int
) -> Iterator[tuple[npt.NDArray[Any], ...]]:
    """Return (nats, ranks, top ids, top probabilities) of the predicted tokens, in text order."""
    rows = min(_MOST_ROWS, max_rows(context_length, model.vocab_size))
    windows = EvalWindows(ids.astype(np.uint32), batch_size=rows, context_length=context_length)
    was_training = model.training
    model.eval()
    try:
        for batch in windows:
            targets = batch["labels"][:, 1:]
            predicted = targets != IGNORE_INDEX
            logits = model(batch["input_ids"].to(model.device))["logits"][:, :-1].cpu()
            yield _judge(logits[predicted].double(), targets[predicted], top_k)
    finally:
        model.train(was_training)


def _judge(logits: torch.Tensor, targets: torch.Tensor, top_k: int) -> tuple[npt.NDArray[Any], ...]:
    """logits (n, vocab_size) float64, targets (n,) -> four arrays of n rows."""
    if bool(logits.isnan().any()):
        raise ModelError("the model predicts NaN", "it has diverged: try an earlier --checkpoint")
    log_probabilities = logits.log_softmax(dim=-1)
    found = log_probabilities.gather(1, targets[:, None])
    if bool(found.isinf().any()):
        raise ModelError("a token of this text has probability 0: the loss is infinite")
    # Ties go to the smaller id, as in argmax.
    earlier = torch.arange(logits.shape[1]) < targets[:, None]
    ahead = (log_probabilities > found) | ((log_probabilities == found) & earlier)
    order = log_probabilities.sort(dim=-1, descending=True, stable=True)
    return (
        -found[:, 0].numpy(),
        ahead.sum(dim=-1).numpy(),
        order.indices[:, :top_k].numpy(),
        order.values[:, :top_k].exp().numpy(),
    )
