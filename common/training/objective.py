"""Training objectives: the targets of a batch, their loss, and the metrics of an evaluation.

Trainer, Evaluator and autotuning pass batches to the objective and never inspect them. For another
task subclass Objective: `prepare`, `count`, `loss`, `measure`, and `report` for more metrics.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from common.data.batch import (
    IGNORE_INDEX,
    Batch,
    count_labels,
    describe_tensor,
    num_rows,
    to_batch,
)
from common.errors import DataError, ModelError
from common.models.base import BaseLanguageModel
from common.models.loss import next_token_loss

_INPUTS_AND_LABELS = (
    'expected {"inputs": (batch, ...), "labels": (batch,) int64}, or a pair of them'
)


class Objective(ABC):
    """Base class of training tasks. Losses are means over the targets of a batch, in `loss_unit`.

    Attributes:
        unit: plural name of a target, used in the metrics `num_<unit>` and `<unit>_per_second`.
        loss_unit: unit of the loss per target, for display; empty: no unit.
    """

    unit: str
    loss_unit = "nats"
    is_bound = False  # whether the loss is an upper bound, which is not ranked among losses

    @abstractmethod
    def prepare(self, given: Any, index: int) -> Batch:
        """Turn batch `index` of the data into the model's batch.

        A pure function, so that a resume is exact: noise and masks are drawn from `index` and a
        seed of the objective. Raises DataError for an invalid batch.
        """

    @abstractmethod
    def count(self, batch: Batch) -> int:
        """Number of targets in `batch`, which weights its mean loss."""

    def size(self, batch: Batch) -> int:
        """Number of units the model reads, with or without a target, for the speed."""
        return num_rows(batch)

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Compute the mean loss over the targets of `batch`, a scalar with a gradient."""

    @abstractmethod
    def measure(self, model: nn.Module, batch: Batch) -> dict[str, float]:
        """Compute sums over `batch` for `report`: at least `loss` and `targets`, and `correct` for accuracy."""

    def loss_metrics(self, loss: float) -> dict[str, float]:
        """Metrics to log for a mean loss."""
        return {"loss": loss}

    def report(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Compute the metrics of an evaluation from the sums of `measure` over all batches and processes."""
        targets = sums["targets"]
        if not targets:
            raise DataError("nothing to evaluate: no batch has a label to predict")
        metrics = self.loss_metrics(sums["loss"] / targets)
        metrics[f"num_{self.unit}"] = int(targets)
        if "correct" in sums:
            metrics["accuracy"] = sums["correct"] / targets
        return metrics

    def describe(self, metrics: Mapping[str, float]) -> str:
        """Format the metrics of an evaluation as one line."""
        one = self.unit.removesuffix("s")
        loss_unit = f" {self.loss_unit}" if self.loss_unit else ""
        parts = [f"loss {metrics['loss']:.4f}{loss_unit} per {one}"]
        if "perplexity" in metrics:
            parts.append(f"perplexity {metrics['perplexity']:.3f}")
        if "accuracy" in metrics:
            parts.append(f"accuracy {metrics['accuracy']:.2%}")
        if "bits_per_byte" in metrics:
            parts.append(f"{metrics['bits_per_byte']:.4f} bits per byte")
        return f"{', '.join(parts)} ({int(metrics[f'num_{self.unit}']):,} {self.unit})"


class NextToken(Objective):
    """Next-token prediction: batches {"input_ids", "labels"} of (batch, time) int64.

    Args:
        vocab_size: larger ids raise DataError; None: not checked.
        token_bytes: (vocab_size,) bytes per token (`Tokenizer.token_bytes`), for bits per byte.
        accuracy: also measure top-1 accuracy. It needs the (batch, time, vocab_size) logits, which
            the loss alone does not keep.
    """

    unit = "tokens"

    def __init__(
        self, vocab_size: int | None = None, token_bytes: Any = None, *, accuracy: bool = False
    ) -> None:
        self.vocab_size = vocab_size
        if token_bytes is not None and not isinstance(token_bytes, torch.Tensor):
            token_bytes = torch.as_tensor(np.array(token_bytes))
        self.token_bytes: torch.Tensor | None = token_bytes
        self.accuracy = accuracy

    def prepare(self, given: Any, index: int) -> Batch:
        """Convert anything that `to_batch` (data/batch.py) takes; handles padding and missing labels."""
        return to_batch(given, self.vocab_size)

    def count(self, batch: Batch) -> int:
        return count_labels(batch["labels"])

    def size(self, batch: Batch) -> int:
        return batch["input_ids"].numel()

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Loss of a BaseLanguageModel, or of any module with the interface of a Hugging Face model."""
        input_ids, labels = batch["input_ids"], batch["labels"]
        if not isinstance(model, BaseLanguageModel):
            return model(input_ids, labels=labels)["loss"]  # type: ignore[no-any-return]
        return (model.training_loss if model.training else model.compute_loss)(input_ids, labels)

    def measure(self, model: nn.Module, batch: Batch) -> dict[str, float]:
        labels, count = batch["labels"], self.count(batch)
        sums = {"targets": float(count)}
        if self.accuracy:
            logits = model(batch["input_ids"])["logits"]
            mean = float(next_token_loss(logits, labels))
            # No token has the id -100.
            sums["correct"] = float((logits[:, :-1].argmax(dim=-1) == labels[:, 1:]).sum())
        else:
            mean = float(self.loss(model, batch))
        if self.token_bytes is not None:
            targets = labels[:, 1:].cpu()
            sums["bytes"] = float(self.token_bytes[targets[targets != IGNORE_INDEX]].sum())
        return sums | {"loss": mean * count}

    def loss_metrics(self, loss: float) -> dict[str, float]:
        return {"loss": loss, "perplexity": math.exp(loss) if loss < 700 else math.inf}

    def report(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Loss (nats per token), perplexity (its exponential), num_tokens and the optional metrics.

        Special tokens have 0 bytes, but their loss counts.
        """
        metrics = super().report(sums)
        if sums.get("bytes"):
            metrics["bits_per_byte"] = sums["loss"] / math.log(2) / sums["bytes"]
        return metrics


class Classification(Objective):
    """Classification: batches {"inputs": (batch, ...), "labels": (batch,) int64}.

    The model maps inputs to {"logits": (batch, num_classes)}; rows with label -100 are ignored.

    Args:
        num_classes: larger labels raise DataError.
        unit: plural name of a row.
        class_names: for reports; None: the labels.
    """

    def __init__(
        self, num_classes: int, unit: str = "images", class_names: Sequence[str] | None = None
    ) -> None:
        self.num_classes = num_classes
        self.unit = unit
        self.class_names = class_names or [*map(str, range(num_classes))]

    def prepare(self, given: Any, index: int) -> Batch:
        """Accept a mapping with these two keys, or a tuple of the two, as PyTorch datasets return."""
        if isinstance(given, list | tuple) and len(given) == 2:
            given = {"inputs": given[0], "labels": given[1]}
        if not isinstance(given, Mapping) or not {"inputs", "labels"} <= given.keys():
            what = f"the keys {[*given]}" if isinstance(given, Mapping) else type(given).__name__
            raise DataError(f"a batch is {what}", _INPUTS_AND_LABELS)
        inputs, labels = given["inputs"], given["labels"]
        if not (
            isinstance(inputs, torch.Tensor)
            and isinstance(labels, torch.Tensor)
            and labels.shape == inputs.shape[:1]
            and not (labels.is_floating_point() or labels.is_complex())
        ):
            raise DataError(
                f"inputs and labels are {describe_tensor(inputs)} and {describe_tensor(labels)}",
                _INPUTS_AND_LABELS,
            )
        labels = labels.long()  # first: -100 is 156 as uint8
        self._check_classes(labels)
        return {"inputs": inputs, "labels": labels}

    def _check_classes(self, labels: torch.Tensor) -> None:
        """Check on the CPU: a GPU reports only a failed assertion."""
        classes = labels[labels != IGNORE_INDEX]
        wrong = classes[(classes < 0) | (classes >= self.num_classes)]
        if len(wrong):
            raise DataError(
                f"label {int(wrong[0])} is out of range for {self.num_classes} classes",
                f"labels are 0 to {self.num_classes - 1}; {IGNORE_INDEX} marks ignored rows",
            )

    def count(self, batch: Batch) -> int:
        return int((batch["labels"] != IGNORE_INDEX).sum())

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        loss: torch.Tensor = _cross_entropy(self.logits(model, batch), batch["labels"])
        return loss

    def measure(self, model: nn.Module, batch: Batch) -> dict[str, float]:
        count, logits = self.count(batch), self.logits(model, batch)
        mean = float(_cross_entropy(logits, batch["labels"]))
        correct = float((logits.argmax(dim=-1) == batch["labels"]).sum())
        return {"targets": float(count), "loss": mean * count, "correct": correct}

    def logits(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Compute the logits (batch, num_classes). Raises ModelError for another shape."""
        logits: torch.Tensor = model(batch["inputs"])["logits"]
        expected = (len(batch["labels"]), self.num_classes)
        if logits.shape != expected:
            raise ModelError(
                f"{type(model).__name__} returns logits of shape {tuple(logits.shape)}",
                f"expected (batch, num_classes), here {expected}",
            )
        return logits


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats, computed in fp32 or better; 0 if no row has a label."""
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    total = F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum")
    return total / (labels != IGNORE_INDEX).sum().clamp(min=1)
