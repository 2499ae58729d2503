"""Metrics of single predictions: loss by position, accuracy, calibration.

They need the logits of every token, unlike the loss (see evaluator.py), so they are computed on
request, for a bounded number of logits at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from common.data.batch import IGNORE_INDEX, to_batch
from common.errors import DataError, ModelError
from common.training.precision import autocast
from common.utils.progress import with_progress

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

NUM_BINS = 15  # as Guo et al. 2017 use
TOP_K = 5
_LOGITS_AT_A_TIME = 2**24  # 64 MiB in fp32; peak memory is about four times that


@dataclass(frozen=True)
class Calibration:
    """A reliability diagram: predictions in bins of equal width by confidence.

    The confidence of a prediction is the probability of the most likely token; the prediction is
    correct if that is the target. Bin m of M is the interval (m / M, (m + 1) / M].
    """

    counts: Counts  # (num_bins,)
    confidence: Floats  # (num_bins,) mean; NaN in an empty bin
    accuracy: Floats  # (num_bins,) fraction correct; NaN in an empty bin

    @property
    def expected_error(self) -> float:
        """Mean gap between accuracy and confidence, weighted by the counts of the bins.

        Guo et al. 2017, "On Calibration of Modern Neural Networks", equation 3.
        """
        filled = self.counts > 0
        gaps = np.abs(self.accuracy - self.confidence)[filled]
        return float(np.average(gaps, weights=self.counts[filled]))


@dataclass(frozen=True)
class PredictionMetrics:
    """Result of `measure_predictions` on one validation set."""

    loss: float  # nats per token
    num_tokens: int
    accuracy: float  # fraction of targets that are the most likely token
    top5_accuracy: float  # ... that are among the five most likely
    bits_per_byte: float | None  # None without token_bytes
    position_loss: Floats  # (time,) mean nats of the token after `index` others; [0] is NaN
    position_counts: Counts  # (time,) number of tokens in each mean
    calibration: Calibration

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    def scalars(self) -> dict[str, float]:
        """The scalar metrics, under the names used in logs."""
        metrics = {
            "loss": self.loss,
            "perplexity": self.perplexity,
            "num_tokens": self.num_tokens,
            "accuracy": self.accuracy,
            "top5_accuracy": self.top5_accuracy,
            "calibration_error": self.calibration.expected_error,
        }
        if self.bits_per_byte is not None:
            metrics["bits_per_byte"] = self.bits_per_byte
        return metrics


class PredictionMeter:
    """Accumulates predictions over batches: call `update(logits, labels)` repeatedly, then `compute()`.

    Args:
        token_bytes: (vocab_size,) bytes per token, for bits per byte.
        num_bins: of the reliability diagram.
    """

    def __init__(self, token_bytes: Any = None, num_bins: int = NUM_BINS) -> None:
        self._token_bytes = None if token_bytes is None else np.asarray(token_bytes)
        self._num_bytes = 0
        self._correct = self._in_top_k = 0
        # Sums in float64; by position they grow with the longest batch.
        self._position_nats = np.zeros(0)
        self._position_counts = np.zeros(0, dtype=np.int64)
        self._bin_counts = np.zeros(num_bins, dtype=np.int64)
        self._bin_confidence = np.zeros(num_bins)
        self._bin_correct = np.zeros(num_bins)

    def update(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Add the predictions of labels[:, t + 1] by logits[:, t].

        Args:
            logits: (batch, time, vocab_size), any float dtype.
            labels: (batch, time) int64, as for the loss; -100 is ignored.
        Raises ModelError if a logit is NaN.
        """
        predicted = labels[:, 1:] != IGNORE_INDEX
        targets = labels[:, 1:][predicted]  # (n,)
        nats, ranks, confidence = _judge(logits[:, :-1][predicted], targets)
        if np.isnan(nats).any():
            raise ModelError(
                "the model predicts NaN", "it has diverged: evaluate an earlier --checkpoint"
            )
        self._count_positions(predicted.nonzero()[:, 1].cpu().numpy() + 1, nats, labels.shape[1])
        self._count_bins(confidence, ranks == 0)
        self._correct += int((ranks == 0).sum())
        self._in_top_k += int((ranks < TOP_K).sum())
        if self._token_bytes is not None:
            self._num_bytes += int(self._token_bytes[targets.cpu().numpy()].sum())

    def _count_positions(self, positions: Counts, nats: Floats, time: int) -> None:
        grow = max(0, time - len(self._position_nats))
        self._position_nats = np.pad(self._position_nats, (0, grow))
        self._position_counts = np.pad(self._position_counts, (0, grow))
        size = len(self._position_nats)
        self._position_nats += np.bincount(positions, nats, size)
        self._position_counts += np.bincount(positions, minlength=size)

    def _count_bins(self, confidence: Floats, correct: npt.NDArray[np.bool_]) -> None:
        size = len(self._bin_counts)
        # Rounding may put a confidence just outside of (0, 1].
        bins = (np.ceil(confidence * size).astype(np.int64) - 1).clip(0, size - 1)
        self._bin_counts += np.bincount(bins, minlength=size)
        self._bin_confidence += np.bincount(bins, confidence, size)
        self._bin_correct += np.bincount(bins, correct, size)

    def compute(self) -> PredictionMetrics:
        """Compute means over all predictions. Raises DataError if there are none."""
        num_tokens = int(self._position_counts.sum())
        if num_tokens == 0:
            raise DataError("nothing to evaluate: no batch has a label to predict")
        nats = float(self._position_nats.sum())
        with np.errstate(invalid="ignore"):  # 0 / 0 is NaN: a position or bin without predictions
            return PredictionMetrics(
                loss=nats / num_tokens,
                num_tokens=num_tokens,
                accuracy=self._correct / num_tokens,
                top5_accuracy=self._in_top_k / num_tokens,
                bits_per_byte=nats / math.log(2) / self._num_bytes if self._num_bytes else None,
                position_loss=self._position_nats / self._position_counts,
                position_counts=self._position_counts.copy(),
                calibration=Calibration(
                    self._bin_counts.copy(),
                    self._bin_confidence / self._bin_counts,
                    self._bin_correct / self._bin_counts,
                ),
            )


def _judge(logits: torch.Tensor, targets: torch.Tensor) -> tuple[Floats, Counts, Floats]:
    """Compute for each prediction its loss in nats, the rank of the target, and its confidence.

    Args:
        logits: (n, vocab_size); targets: (n,) int64.
    Returns: three arrays of shape (n,), computed in fp32 or better.
    """
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    log_normaliser = logits.logsumexp(dim=-1)
    target_logits = logits.gather(1, targets[:, None])  # (n, 1)
    # Ties go to the first token, as in argmax: a model with equal logits gets no credit. "Not
    # smaller or equal" ranks NaN higher.
    before = torch.arange(logits.shape[1], device=logits.device) < targets[:, None]
    ranks = (~(logits <= target_logits) | ((logits == target_logits) & before)).sum(dim=-1)
    nats = log_normaliser - target_logits[:, 0]
    confidence = (logits.amax(dim=-1) - log_normaliser).exp()
    return nats.cpu().double().numpy(), ranks.cpu().numpy(), confidence.cpu().double().numpy()


@torch.no_grad()
def measure_predictions(
    model: nn.Module,
    dataloader: Iterable[Any],
    *,
    token_bytes: Any = None,
    num_bins: int = NUM_BINS,
    precision: str = "fp32",
) -> PredictionMetrics:
    """Measure all predictions of a model on batches that `to_batch` (data/batch.py) accepts.

    The model keeps its device and mode, and runs without dropout. Memory is that of the logits of a
    few rows, whatever the batch size.

    Args:
        model: a BaseLanguageModel, or any module with the interface of a Hugging Face model.
        token_bytes: (vocab_size,) bytes per token (`Tokenizer.token_bytes`), for bits per byte.
        num_bins: of the reliability diagram.
        precision: fp32 or bf16, of the forward pass.
    Raises DataError if there is nothing to predict, ModelError if the model predicts NaN.
    """
    meter = PredictionMeter(token_bytes, num_bins)
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        vocab_size = vocab_size_of(model)
        for given in with_progress(dataloader, "evaluating"):
            batch = to_batch(given, vocab_size)
            for rows in _few_rows(batch["input_ids"].shape, vocab_size):
                with autocast(precision, device):
                    logits = model(batch["input_ids"][rows].to(device))["logits"]
                meter.update(logits, batch["labels"][rows].to(device))
    finally:
        model.train(was_training)
    return meter.compute()


def vocab_size_of(model: nn.Module) -> int:
    """Vocabulary size of a BaseLanguageModel or of a Hugging Face model's configuration."""
    return int(getattr(model, "vocab_size", None) or model.config.vocab_size)  # type: ignore[union-attr, arg-type]  # nn.Module


def max_rows(time: int, vocab_size: int) -> int:
    """Number of rows of `time` tokens to compute at once, at least 1."""
    return max(1, _LOGITS_AT_A_TIME // (time * vocab_size))


def _few_rows(shape: tuple[int, ...], vocab_size: int) -> Iterator[slice]:
    step = max_rows(shape[1], vocab_size)
    for first in range(0, shape[0], step):
        yield slice(first, first + step)
