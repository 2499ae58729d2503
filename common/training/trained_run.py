"""Load the model of an experiment by name, for evaluation, sampling, export and analysis."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import CheckpointError, UsageError, did_you_mean
from common.experiments.run_folders import folder_of
from common.training.projects import project_of_run, recorded_config

if TYPE_CHECKING:  # a mistake in a command is reported before torch is imported
    from common.data.token_files import TokenDataset
    from common.models.base import BaseLanguageModel
    from common.training.experiment import Experiment


@dataclass(frozen=True)
class TrainedRun:
    """An experiment with the weights of one of its checkpoints.

    Attributes:
        config: an instance of the project's schema.
        experiment: the result of the project's `build`; LoRA adapters are merged.
        checkpoint: the folder of the weights.
    """

    name: str
    project: str
    config: Any
    experiment: Experiment
    checkpoint: Path

    @property
    def model(self) -> BaseLanguageModel:
        """The language model. Raises UsageError if the experiment has another kind of model."""
        from common.models.base import BaseLanguageModel

        if not isinstance(self.experiment.model, BaseLanguageModel):
            kind = type(self.experiment.model).__name__
            raise UsageError(
                f"'{self.name}' is a {kind}, not a language model: it cannot generate text"
            )
        return self.experiment.model

    @property
    def text(self) -> TokenDataset:
        """The tokens it was trained on. Raises UsageError if its data is not text."""
        if not self.experiment.has_text:
            unit = self.experiment.objective.unit
            raise UsageError(
                f"'{self.name}' was trained on {unit}, not on a text",
                "evaluate it on its validation data: evaluate.py NAME",
            )
        return self.experiment.text

    def batches(self, split: str = "val") -> Iterable[Any]:
        """Batches over a whole split (train or val). Raises UsageError if there is no such split."""
        from common.training.experiment import eval_windows

        data = self.experiment.val_data
        if split != "val":
            data = eval_windows(self.config, self.text.tokens(split))
        if data is None:
            raise UsageError(
                f"'{self.name}' has no validation data", "build(config) sets no val_data"
            )
        return data

    def evaluate(self, split: str = "val") -> dict[str, float]:
        """Evaluate a whole split (train or val). Raises UsageError if there is no such split."""
        from common.training.evaluator import Evaluator

        batches, experiment = self.batches(split), self.experiment
        return Evaluator(experiment.model, objective=experiment.objective).evaluate(batches)


def load_run(name: str, checkpoint: str = "best") -> TrainedRun:
    """Load experiment `name` with a checkpoint: best (lowest validation loss), last, or a step.

    The project that trained it rebuilds it. Raises ExperimentError if the run or its project does
    not exist, DataError if its data is not on this machine, and CheckpointError if the checkpoint
    does not exist or the data has changed.
    """
    project = project_of_run(name)
    schema, build = project.load()
    config = recorded_config(name, schema)
    project.check_inputs(config, folder_of(name) / "config.yaml")
    path = find_checkpoint(name, checkpoint)
    from common.training.experiment import build_experiment

    experiment = build_experiment(build, config, project.name)
    _load_weights(name, experiment, path, config.training.device)
    return TrainedRun(name, project.name, config, experiment, path)


def find_checkpoint(name: str, which: str) -> Path:
    """The folder of checkpoint `which` (best, last or a step) of run `name`."""
    from common.training.checkpoints import best_checkpoint, steps_in

    directory = folder_of(name) / "checkpoints"
    steps = steps_in(directory)
    if which == "best":
        return best_checkpoint(directory)
    if which == "last" and steps:
        return directory / f"step_{steps[-1]}"
    if which.isdecimal() and int(which) in steps:
        return directory / f"step_{which}"
    choices = ["best", "last", *(str(step) for step in steps)]
    raise CheckpointError(f"no checkpoint '{which}'", did_you_mean(which, choices))


def _load_weights(name: str, experiment: Experiment, path: Path, device: str) -> None:
    """Load the weights of the checkpoint `path`, which must be trained on the same data."""
    from common.models.checkpoint import load_checkpoint
    from common.models.lora import merge_lora
    from common.training.precision import select_device

    trained_on = load_checkpoint(path).state["fingerprint"]
    # The order of batches and further validation texts no longer matter.
    data = experiment.text.fingerprint if experiment.has_text else experiment.fingerprint
    if not data.items() <= trained_on.items():
        raise CheckpointError(
            f"'{name}' was trained on different data than data.* now gives",
            "restore the text it was prepared from, or train a new experiment",
        )
    experiment.model.to(select_device(device))
    experiment.model.load_checkpoint(path)
    merge_lora(experiment.model)
