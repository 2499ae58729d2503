"""From the name of an experiment to its model, for the tools that look at any project's runs.

No tool by itself. It stands here and not in `common/`, which knows nothing of the projects.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.config import load_config
from common.errors import ExperimentError, did_you_mean
from common.training.config import ExperimentConfig
from common.utils.files import read_json
from common.utils.paths import REPOSITORY_ROOT, get_runs_dir

if TYPE_CHECKING:
    from common.data.prepare import TokenDataset
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
    config, train = find_run(name)
    from common.training.experiment import load_run

    model, data, checkpoint = load_run(config, train.build_model, name, which)
    return TrainedRun(name, config, model, data, checkpoint)


def find_run(name: str) -> tuple[Any, Any]:
    """The configuration of run `name` and the `train` module of its project, with `build_model`.

    Any: each project has a schema of its own. Raises ExperimentError for no such run or project.
    """
    directory = get_runs_dir() / name
    if not (directory / "config.yaml").is_file():
        runs = sorted(path.parent.name for path in get_runs_dir().glob("*/config.yaml"))
        hint = did_you_mean(name, runs) if runs else "train one first"
        raise ExperimentError(f"there is no run '{name}' in {get_runs_dir()}", hint)
    project = str(read_json(directory / "manifest.json", ExperimentError).get("project"))
    script = REPOSITORY_ROOT / "projects" / project / "train.py"
    if not re.fullmatch(r"\w+", project) or not script.is_file():
        raise ExperimentError(
            f"'{name}' was trained by the project '{project}', which is not in projects/"
        )
    train: Any = importlib.import_module(f"projects.{project}.train")
    return load_config(directory / "config.yaml", train.Config), train
