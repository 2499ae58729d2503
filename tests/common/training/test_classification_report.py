"""The report of a classifier: confusion, interval, calibration and mistakes, against independent computations."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, log_loss
from torch import nn

from common.errors import DataError, ModelError
from common.models import Classifier
from common.training import Classification
from common.training.classification_plot import plot_classification
from common.training.classification_report import measure_classification
from common.utils.paths import REPOSITORY_ROOT, get_runs_dir

NAMES = ["a_long_name_of_a_class", "$x", "_y"]


def batches(count: int = 200) -> list[dict[str, torch.Tensor]]:
    """Images whose three logits are their first pixels."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(count, 1, 2, 3, generator=generator) * 2
    noisy = inputs[:, 0, 0] + torch.randn(count, 3, generator=generator)
    labels = noisy.argmax(dim=1)
    labels[::10] = -100
    return [
        {"inputs": part, "labels": label}
        for part, label in zip(inputs.split(64), labels.split(64), strict=True)
    ]


class FirstRow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs[:, 0, 0]


def test_its_numbers_are_those_of_scikit_learn() -> None:
    given = batches()
    found = measure_classification(Classifier(FirstRow()), given, Classification(3))
    inputs = torch.cat([batch["inputs"] for batch in given])
    labels = torch.cat([batch["labels"] for batch in given])
    kept = labels != -100
    probabilities = inputs[kept][:, 0, 0].double().softmax(dim=1).numpy()
    targets, predicted = labels[kept].numpy(), probabilities.argmax(axis=1)
    assert found.loss == pytest.approx(log_loss(targets, probabilities), rel=1e-5)
    np.testing.assert_array_equal(found.confusion, confusion_matrix(targets, predicted))
    assert found.num_rows == kept.sum() and found.num_correct == (targets == predicted).sum()

    # Wilson 1927: the accuracies p with |p - observed| <= z * sqrt(p (1 - p) / n)
    share = found.num_correct / found.num_rows
    for limit in found.interval:
        deviation = 1.959964 * (limit * (1 - limit) / found.num_rows) ** 0.5
        assert abs(limit - share) == pytest.approx(deviation, rel=1e-4)

    confidence = probabilities.max(axis=1)
    bins = np.ceil(confidence * 15).astype(int)
    gaps = [
        (bins == m).mean() * abs((targets == predicted)[bins == m].mean() - confidence[bins == m].mean())
        for m in np.unique(bins)
    ]  # fmt: skip
    assert found.calibration.expected_error == pytest.approx(sum(gaps), abs=1e-6)

    wrong = np.flatnonzero(targets != predicted)
    most = wrong[np.argsort(-confidence[wrong])][:12]
    rows = kept.nonzero()[:, 0].numpy()[most]
    assert [mistake.row for mistake in found.mistakes] == rows.tolist()
    assert [m.confidence for m in found.mistakes] == pytest.approx(confidence[most].tolist())
    for mistake in found.mistakes:
        assert mistake.label == labels[mistake.row] != mistake.predicted
        assert torch.equal(mistake.inputs, inputs[mistake.row])


@pytest.mark.parametrize("size", [(1, 2, 3), (6,)])
def test_it_is_drawn_with_any_names_and_inputs(tmp_path: Path, size: tuple[int, ...]) -> None:
    given = [batch | {"inputs": batch["inputs"].view(-1, *size)} for batch in batches()]
    model = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(6, 3)))
    found = measure_classification(model, given, Classification(3))
    figure = plot_classification(found, NAMES, title="$t_", output=tmp_path / "report.png")
    assert (tmp_path / "report.png").stat().st_size > 10_000
    pictures = len(found.mistakes) if len(size) == 3 else 0
    assert len(figure.get_axes()) == 3 + pictures and len(found.mistakes) > 1


def test_nothing_to_evaluate_and_nan_are_errors() -> None:
    objective = Classification(3)
    nothing = [{"inputs": torch.zeros(2, 1, 2, 3), "labels": torch.full((2,), -100)}]
    with pytest.raises(DataError, match="nothing to evaluate"):
        measure_classification(Classifier(FirstRow()), nothing, objective)
    broken = [{"inputs": torch.full((2, 1, 2, 3), torch.nan), "labels": torch.zeros(2).long()}]
    with pytest.raises(ModelError, match="predicts NaN"):
        measure_classification(Classifier(FirstRow()), broken, objective)


@pytest.mark.slow
def test_the_command_writes_a_table_json_and_a_picture(run_tool) -> None:
    project = REPOSITORY_ROOT / "projects" / "digits"
    short = ("training.max_steps=60", "training.device=cpu", "--name", "a")
    trained = run_tool(project / "train.py", "--config", "configs/mlp.yaml", *short)
    assert trained.returncode == 0, trained.stderr
    printed = run_tool(project / "evaluate.py", "a", "--full-report")
    assert printed.returncode == 0, printed.stderr
    report = json.loads((get_runs_dir() / "a" / "report.json").read_text())
    assert (get_runs_dir() / "a" / "report.png").exists()
    confusion = np.array(report["confusion"])
    assert report["num_images"] == 360 == confusion.sum()
    assert report["accuracy"] == pytest.approx(confusion.trace() / 360)
    assert report["accuracy_low"] < report["accuracy"] < report["accuracy_high"]
    assert f"accuracy {report['accuracy']:.2%} (95% interval" in printed.stdout
    lines = printed.stdout.splitlines()
    assert sum(line.startswith(str(digit)) for digit in range(10) for line in lines) == 10
