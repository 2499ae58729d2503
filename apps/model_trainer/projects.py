"""Validation of a request by the project's own schema, before it is accepted."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from pydantic import JsonValue

from apps.model_trainer.errors import AppError, ErrorCode
from apps.model_trainer.records import TrainRequest
from common.config import load_config
from common.errors import did_you_mean
from common.training.config import BaseExperimentConfig
from common.training.projects import Project, find_projects


def project_named(name: str) -> Project:
    """Raises AppError, with the nearest name, if there is no such project."""
    projects = {project.name: project for project in find_projects()}
    if name not in projects:
        raise AppError(
            ErrorCode.NOT_FOUND, f"there is no project '{name}'", did_you_mean(name, [*projects])
        )
    return projects[name]


@cache
def schema_of(name: str) -> type[BaseExperimentConfig]:
    """The schema of a project's configurations."""
    return project_named(name).load()[0]


def overrides_of(request: TrainRequest) -> list[str]:
    """`key=value` arguments of train.py."""
    return [f"{key}={_as_argument(value)}" for key, value in request.overrides.items()]


def _as_argument(value: JsonValue) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def check_request(request: TrainRequest) -> BaseExperimentConfig:
    """The configuration that train.py will resolve.

    Raises ResearchError for an unknown project, file or key, an invalid value, and missing data.
    """
    project = project_named(request.project)
    path = config_path(project, request.config)
    overrides = overrides_of(request)
    config = load_config(path, schema_of(request.project), overrides, [project.directory])
    project.check_inputs(config, path, overrides)
    return config


def config_path(project: Project, name: str) -> Path:
    """A configuration of the project; a path that leads elsewhere is none."""
    known = {f"configs/{path.name}": path for path in project.configs}
    known |= {path.name: path for path in project.configs}
    if name not in known:
        choices = [key for key in known if key.startswith("configs/")]
        raise AppError(
            ErrorCode.NOT_FOUND,
            f"{project.name} has no configuration {name!r}",
            did_you_mean(name, choices),
        )
    return known[name]
