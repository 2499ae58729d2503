"""The configuration of a trained run and the project that can build its model; for the other tools."""

from __future__ import annotations

import importlib
import re
from typing import Any

from common.config import load_config
from common.errors import ExperimentError, did_you_mean
from common.utils.files import read_json
from common.utils.paths import REPOSITORY_ROOT, get_runs_dir


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
    if (
        not re.fullmatch(r"\w+", project)
        or not (REPOSITORY_ROOT / "projects" / project / "train.py").is_file()
    ):
        raise ExperimentError(
            f"'{name}' was trained by the project '{project}', which is not in projects/"
        )
    train: Any = importlib.import_module(f"projects.{project}.train")
    return load_config(directory / "config.yaml", train.Config), train
