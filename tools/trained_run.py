"""From the name of an experiment to its model, for the tools that look at any project's runs.

No tool by itself: what several of them begin with.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.projects import project_of_run, recorded_config
from common.training.config import ExperimentConfig

if TYPE_CHECKING:
    from common.data.token_files import TokenDataset
    from common.models.base import BaseLanguageModel


@dataclass(frozen=True)
class TrainedRun:
    """A run as its project's evaluate.py sees it."""

    name: str
    config: ExperimentConfig
    model: BaseLanguageModel
    data: TokenDataset
    checkpoint: Path


def load_trained_run(name: str, which: str = "best") -> TrainedRun:
    """Checkpoint `which` (best, last or a step) of run `name`, built by the project that trained it.

    Raises ExperimentError where there is no such run or its project is gone, and what `load_run`
    raises; torch is imported only after these are known to be there.
    """
    config, build_model = find_run(name)
    from common.training.experiment import load_run

    model, data, checkpoint = load_run(config, build_model, name, which)
    return TrainedRun(name, config, model, data, checkpoint)


def find_run(name: str) -> tuple[Any, Any]:
    """The configuration of run `name`, and `build_model` of the project that trained it.

    Any: each project has a schema of its own. Raises ExperimentError for no such run or project.
    """
    schema, build_model = project_of_run(name).load()
    return recorded_config(name, schema), build_model
