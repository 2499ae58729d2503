"""Other tasks than text on the same Trainer, and what is said of a task, a model or a project that is none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import projects.digits.train as digits
from common.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    ExperimentError,
    ModelError,
    UsageError,
)
from common.experiments.catalogue import Catalogue
from common.models import BaseModel, Classifier
from common.training import (
    Callback,
    Classification,
    Evaluator,
    Experiment,
    Objective,
    Trainer,
    TrainingConfig,
    load_run,
)
from common.training.job import train_experiment
from common.utils import query_experiments, start_experiment

SHORT = TrainingConfig(
    max_steps=40,
    eval_every_steps=10,
    log_every_steps=10,
    device="cpu",
    precision="fp32",
    compile=False,
)


class Line(BaseModel):
    def __init__(self, inputs: int = 3) -> None:
        super().__init__(inputs=inputs)
        self.linear = nn.Linear(inputs, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"predictions": self.linear(x)[:, 0]}


class Regression(Objective):
    """Batches of {"x": (batch, features), "y": (batch,)}, both float; the mean squared error."""

    unit = "points"
    loss_unit = ""

    def prepare(self, given: Any, index: int) -> dict[str, torch.Tensor]:
        x, y = given
        return {"x": x, "y": y}

    def count(self, batch: Mapping[str, torch.Tensor]) -> int:
        return len(batch["y"])

    def loss(self, model: nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return nn.functional.mse_loss(model(batch["x"])["predictions"], batch["y"])

    def measure(self, model: nn.Module, batch: Mapping[str, torch.Tensor]) -> dict[str, float]:
        error = model(batch["x"])["predictions"] - batch["y"]
        squares, absolute = float(error.square().sum()), float(error.abs().sum())
        return {"loss": squares, "targets": float(len(error)), "absolute": absolute}

    def report(self, sums: Mapping[str, float]) -> dict[str, float]:
        return super().report(sums) | {"mae": sums["absolute"] / sums["targets"]}


def line_experiment(*callbacks: Callback) -> Experiment:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 3, generator=generator)
    y = x @ torch.tensor([1.0, -2.0, 0.5]) + 0.1 * torch.randn(50, generator=generator)
    torch.manual_seed(1)
    return Experiment(
        Line(),
        DataLoader(TensorDataset(x[:40], y[:40]), batch_size=7, shuffle=True),
        DataLoader(TensorDataset(x[40:], y[40:]), batch_size=4),
        Regression(),
        callbacks=callbacks,
    )


class Fail(Callback):
    def on_step(self, trainer: Trainer) -> None:
        if trainer.step == 25:
            raise RuntimeError("broken")


def test_a_regression_trains_resumes_exactly_and_is_ranked() -> None:
    with start_experiment("whole") as run:
        whole = Trainer(line_experiment(), SHORT, run=run)
        metrics = whole.fit()
    with pytest.raises(RuntimeError, match="broken"), start_experiment("cut") as run:
        Trainer(line_experiment(Fail()), SHORT, run=run).fit()
    with start_experiment("cut", resume=True) as run:
        cut = Trainer(line_experiment(), SHORT, run=run)
        cut.resume()
        assert cut.step == 20
        assert cut.fit() == metrics
    for one, other in zip(whole.model.parameters(), cut.model.parameters(), strict=True):
        assert torch.equal(one, other)
    (x, y), *_ = DataLoader(whole.experiment.val_data.dataset, batch_size=10)  # type: ignore[union-attr]
    error = (whole.model(x)["predictions"] - y).detach().double()
    assert metrics["loss"] == pytest.approx(float(error.square().mean()), rel=1e-5)
    assert metrics["mae"] == pytest.approx(float(error.abs().mean()), rel=1e-5)
    assert metrics["num_points"] == 10
    rows = query_experiments("SELECT loss, mae FROM experiments WHERE split = 'val' ORDER BY step")
    assert rows["loss"].iloc[-1] < rows["loss"].iloc[0]
    assert {entry.name for entry in Catalogue().summaries(metric="mae")} == {"whole", "cut"}
    assert Regression().describe(metrics).startswith(f"loss {metrics['loss']:.4f} per point (10")


IMAGES, LABELS = torch.rand(5, 1, 8, 8), torch.tensor([0, 9, -100, 3, 3])


def tiny_classifier(classes: int = 10) -> Classifier:
    torch.manual_seed(0)
    return Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, classes)))


def test_a_classification_counts_the_rows_that_have_a_label() -> None:
    model = tiny_classifier()
    batches = [(IMAGES, LABELS), {"inputs": IMAGES[:1], "labels": LABELS[2:3]}]
    metrics = Evaluator(model, objective=Classification(10)).evaluate(batches)
    logits = model(IMAGES)["logits"].detach().double()
    kept = LABELS != -100
    losses = logits.logsumexp(1) - logits.gather(1, LABELS.clamp(min=0)[:, None])[:, 0]
    assert metrics["num_images"] == 4
    assert metrics["loss"] == pytest.approx(float(losses[kept].mean()), rel=1e-5)
    right = (logits.argmax(1) == LABELS)[kept].double().mean()
    assert metrics["accuracy"] == pytest.approx(float(right))


def test_labels_of_small_integers_are_classes_as_they_are() -> None:
    objective = Classification(200)
    batch = objective.prepare((IMAGES, torch.tensor([0, 156, 1, 2, 199], dtype=torch.uint8)), 0)
    assert objective.count(batch) == 5 and batch["labels"].dtype == torch.int64


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (IMAGES, "a batch is Tensor"),
        ({"x": IMAGES, "labels": LABELS}, r"a batch is the keys \['x', 'labels'\]"),
        ((IMAGES, LABELS, LABELS), "a batch is tuple"),
        ((IMAGES, LABELS[:4]), r"float32 \(5, 1, 8, 8\) and int64 \(4,\)"),
        ((IMAGES, LABELS[:, None]), r"int64 \(5, 1\)"),
        ((IMAGES, LABELS.float()), r"float32 \(5,\)"),
        ((IMAGES, [0, 9, 1, 3, 3]), "and list"),
        ((IMAGES, torch.tensor([0, 10, 1, 2, 3])), "label 10 is out of range for 10 classes"),
        ((IMAGES, torch.tensor([0, -1, 1, 2, 3])), "label -1 is out of range"),
    ],
)
def test_a_batch_that_is_none_of_the_task_is_refused_before_training(
    batch: Any, message: str
) -> None:
    for train, val in (([batch], None), ([(IMAGES, LABELS)], [batch])):
        experiment = Experiment(tiny_classifier(), train, val, Classification(10))
        with pytest.raises(DataError, match=message):
            Trainer(experiment, SHORT)


def test_a_model_with_another_number_of_classes_is_named() -> None:
    experiment = Experiment(tiny_classifier(7), [(IMAGES, LABELS)], None, Classification(10))
    with pytest.raises(ModelError, match=r"Classifier returns logits of shape \(5, 7\)") as error:
        Trainer(experiment, SHORT).fit()
    assert "(5, 10)" in error.value.hint


def test_a_module_that_is_no_model_is_told_how_to_become_one() -> None:
    network: Any = nn.Linear(64, 10)
    with pytest.raises(ModelError, match=r"a BaseModel, not a Linear .*Classifier\(network\)"):
        Experiment(network, [(IMAGES, LABELS)], None, Classification(10))


def build_line(config: digits.Config) -> Experiment:
    return line_experiment()


CONFIG = digits.Config(training=SHORT)


@pytest.mark.parametrize("returned", [None, Line()], ids=["nothing", "the model"])
def test_a_build_without_an_experiment_is_one_line(
    returned: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = type(returned).__name__
    message = f"build in projects/digits/train.py returns a {kind}"
    with pytest.raises(ConfigError, match=message):
        train_experiment(CONFIG, lambda config: returned, project="digits", name="none")
    assert Catalogue().names() == []
    train_experiment(CONFIG, build_line, project="digits", name="line")
    monkeypatch.setattr(digits, "build", lambda config: returned)
    with pytest.raises(ConfigError, match=message):
        load_run("line")


def test_a_run_is_loaded_and_evaluated_until_its_build_gives_other_shapes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    metrics = train_experiment(CONFIG, build_line, project="digits", name="line")
    monkeypatch.setattr(digits, "build", build_line)
    run = load_run("line", "last")
    assert run.evaluate() == pytest.approx(metrics)
    with pytest.raises(UsageError, match="'line' was trained on points, not on a text"):
        run.evaluate("train")
    with pytest.raises(UsageError, match="'line' is a Line, not a language model"):
        _ = run.model

    def build_wider(config: digits.Config) -> Experiment:
        experiment = line_experiment()
        experiment.model = Line(inputs=4)
        return experiment

    monkeypatch.setattr(digits, "build", build_wider)
    with pytest.raises(CheckpointError, match=r"linear\.weight"):
        load_run("line")
    longer = digits.Config(training=SHORT.model_copy(update={"max_steps": 60}))
    with pytest.raises(CheckpointError, match=r"linear\.weight"):
        train_experiment(longer, build_wider, project="digits", extend="line")


def test_without_validation_data_a_run_trains_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def build(config: digits.Config) -> Experiment:
        return Experiment(tiny_classifier(), [(IMAGES, LABELS)], None, Classification(10))

    assert train_experiment(CONFIG, build, project="digits", name="blind") == {}
    assert "not evaluated: no validation data" in capsys.readouterr().out
    monkeypatch.setattr(digits, "build", build)
    with pytest.raises(UsageError, match="'blind' has no validation data"):
        load_run("blind", "last").evaluate()


def test_a_run_whose_project_is_gone_says_which() -> None:
    train_experiment(CONFIG, build_line, project="gone", name="orphan")
    with pytest.raises(ExperimentError, match="project 'gone', which is not in projects/"):
        load_run("orphan")
