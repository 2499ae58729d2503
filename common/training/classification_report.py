"""Evaluate a trained classifier class by class: a table, report.json, report.png."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from common.data.batch import IGNORE_INDEX, to_device
from common.experiments.run_folders import folder_of
from common.training.evaluation_report import json_ready
from common.training.objective import Classification
from common.training.prediction_metrics import Calibration, PredictionMeter
from common.training.trained_run import TrainedRun
from common.utils.files import write_json_atomic
from common.utils.manifest import now
from common.utils.paths import display_path
from common.utils.progress import with_progress
from common.utils.tables import format_rows

_MOST_MISTAKES = 12


@dataclass(frozen=True)
class Mistake:
    """A row whose most likely class is another than its label."""

    row: int  # in the order of the batches
    label: int
    predicted: int
    confidence: float  # probability of `predicted`
    inputs: torch.Tensor  # as in the batch, without its first dimension


@dataclass(frozen=True)
class ClassificationMetrics:
    """Result of `measure_classification`."""

    loss: float  # nats per row
    confusion: npt.NDArray[np.int64]  # (label, predicted class)
    calibration: Calibration
    mistakes: list[Mistake]  # the most confident first, at most 12

    @property
    def num_rows(self) -> int:
        """Number of rows with a label."""
        return int(self.confusion.sum())

    @property
    def num_correct(self) -> int:
        """Number of rows whose most likely class is their label."""
        return int(self.confusion.trace())

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval of the accuracy over other rows of the same kind (Wilson 1927)."""
        from scipy.stats import binomtest  # half a second

        found = binomtest(self.num_correct, self.num_rows).proportion_ci(method="wilson")
        return float(found.low), float(found.high)

    def scalars(self) -> dict[str, float]:
        """The scalar metrics, under the names used in logs."""
        low, high = self.interval
        return {
            "loss": self.loss,
            "accuracy": self.num_correct / self.num_rows,
            "accuracy_low": low,
            "accuracy_high": high,
            "calibration_error": self.calibration.expected_error,
        }


@torch.no_grad()
def measure_classification(
    model: nn.Module, batches: Iterable[Any], objective: Classification
) -> ClassificationMetrics:
    """Measure the predictions of a classifier, without dropout and in fp32.

    Raises DataError if no row has a label, ModelError if the model predicts NaN.
    """
    meter = PredictionMeter()
    confusion = np.zeros((objective.num_classes, objective.num_classes), np.int64)
    mistakes: list[Mistake] = []
    device, was_training, seen = next(model.parameters()).device, model.training, 0
    model.eval()
    try:
        for index, given in enumerate(with_progress(batches, "evaluating")):
            batch = objective.prepare(given, index)
            logits = objective.logits(model, to_device(batch, device)).cpu()
            labels = batch["labels"]
            # To the meter a row is a text whose second token is predicted from the first.
            meter.update(logits[:, None].expand(-1, 2, -1), labels[:, None].expand(-1, 2))
            confidence, predicted = logits.float().softmax(dim=-1).max(dim=-1)
            has_label = labels != IGNORE_INDEX
            np.add.at(confusion, (labels[has_label].numpy(), predicted[has_label].numpy()), 1)
            for row in ((predicted != labels) & has_label).nonzero()[:, 0].tolist():
                found = int(labels[row]), int(predicted[row]), float(confidence[row])
                mistakes.append(Mistake(seen + row, *found, batch["inputs"][row]))
            mistakes = sorted(mistakes, key=lambda mistake: -mistake.confidence)[:_MOST_MISTAKES]
            seen += len(labels)
    finally:
        model.train(was_training)
    computed = meter.compute()
    return ClassificationMetrics(computed.loss, confusion, computed.calibration, mistakes)


def evaluate_classes(run: TrainedRun, split: str = "val") -> ClassificationMetrics:
    """Evaluate a classifier on a split, print tables, and write report.json and report.png to its folder.

    Raises UsageError if there is no such split.
    """
    from common.training.classification_plot import plot_classification  # it imports Matplotlib

    objective, batches = run.experiment.objective, run.batches(split)
    assert isinstance(objective, Classification)
    found = measure_classification(run.experiment.model, batches, objective)
    scalars, names = found.scalars(), objective.class_names
    print(f"checkpoint  {display_path(run.checkpoint)}")
    print(
        f"{split:10}  loss {found.loss:.4f} nats, accuracy {scalars['accuracy']:.2%} (95% interval "
        f"{scalars['accuracy_low']:.2%} to {scalars['accuracy_high']:.2%}), calibration error "
        f"{scalars['calibration_error']:.2%} ({found.num_rows:,} {objective.unit})\n"
    )
    print(_table_of_classes(found.confusion, names, objective.unit))
    directory = folder_of(run.name)
    report = {
        "name": directory.name,
        "checkpoint": run.checkpoint.name,
        "created": now(),
        "split": split,
        f"num_{objective.unit}": found.num_rows,
        **scalars,
        "classes": names,
        "confusion": found.confusion,
        "calibration": asdict(found.calibration),
        "mistakes": [
            {
                "row": mistake.row,
                "label": names[mistake.label],
                "predicted": names[mistake.predicted],
                "confidence": mistake.confidence,
            }
            for mistake in found.mistakes
        ],
    }
    write_json_atomic(directory / "report.json", json_ready(report))
    title = f"{directory.name}, {run.checkpoint.name}"
    plot_classification(found, names, title=title, output=directory / "report.png")
    print(f"\nreport      {display_path(directory / 'report.json')}")
    print(f"picture     {display_path(directory / 'report.png')}")
    return found


def _table_of_classes(confusion: npt.NDArray[np.int64], names: Iterable[str], unit: str) -> str:
    names, rows = [*names], list[list[object]]()
    for label, counts in enumerate(confusion):
        wrong = counts.copy()
        wrong[label] = 0
        worst = int(wrong.argmax())
        mistaken = f"{names[worst]} ({wrong[worst]})" if wrong[worst] else None
        accuracy = counts[label] / counts.sum() if counts.sum() else None
        rows.append([names[label], int(counts.sum()), accuracy, mistaken])
    return format_rows(["class", unit, "accuracy", "most often taken for"], rows, "table")
