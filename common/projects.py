"""The projects of this repository: found by their folders, imported when one is needed.

A project is a folder `projects/<name>` whose `train.py` holds `Config`, the schema of its configurations,
and `build_model(config, vocab_size)`. Nothing here imports one until `load` is called.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from common.config import make_config
from common.errors import ConfigError, ExperimentError, did_you_mean
from common.experiments.catalogue import Catalogue
from common.training.config import ExperimentConfig
from common.utils.paths import REPOSITORY_ROOT

if TYPE_CHECKING:
    from common.models.base import BaseLanguageModel

C = TypeVar("C", bound=ExperimentConfig)
CONFIG_SUFFIXES = (".yaml", ".yml", ".toml")


@dataclass(frozen=True)
class Project:
    directory: Path

    @property
    def name(self) -> str:
        return self.directory.name

    @property
    def description(self) -> str:
        """The first line of the package's docstring; the package is not imported."""
        source = (self.directory / "__init__.py").read_text(encoding="utf-8")
        return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]

    @property
    def configs(self) -> list[Path]:
        return sorted(
            path
            for path in (self.directory / "configs").glob("*")
            if path.suffix in CONFIG_SUFFIXES
        )

    def load(self) -> tuple[type[ExperimentConfig], Callable[..., BaseLanguageModel]]:
        """(schema, build_model) of its train.py. Raises ConfigError where it lacks one of them."""
        train: Any = importlib.import_module(f"projects.{self.name}.train")
        try:
            return train.Config, train.build_model
        except AttributeError as error:
            raise ConfigError(
                f"projects/{self.name}/train.py defines no {error.name}",
                "every project has both: Config and build_model, as projects/baseline/train.py",
            ) from error


def find_projects() -> list[Project]:
    """Every project, by name."""
    scripts = (REPOSITORY_ROOT / "projects").glob("*/train.py")
    return [Project(directory) for directory in sorted(path.parent for path in scripts)]


def find_project(name: str) -> Project:
    """Raises ConfigError, with the nearest name, where there is no such project."""
    projects = {project.name: project for project in find_projects()}
    if name not in projects:
        raise ConfigError(f"there is no project '{name}'", did_you_mean(name, list(projects)))
    return projects[name]


def project_of_config(path: Path) -> Project | None:
    """The project whose folder the file is in: `projects/<name>/configs/file.yaml`."""
    inside = {project.directory: project for project in find_projects()}
    return next((inside[folder] for folder in path.resolve().parents if folder in inside), None)


def project_of_run(name: str) -> Project:
    """The project that trained experiment `name`. Raises ExperimentError where either is gone."""
    trained_by = Catalogue().manifest(name)["project"]
    projects = {project.name: project for project in find_projects()}
    if trained_by not in projects:
        raise ExperimentError(
            f"'{name}' was trained by the project '{trained_by}', which is not in projects/"
        )
    return projects[trained_by]


def recorded_config(name: str, schema: type[C]) -> C:
    """The configuration that experiment `name` was started with last.

    The store has it, in the log or the Parquet file; `config.yaml` in the run's folder is a copy to
    read. Raises ExperimentError with the nearest name, and ConfigError where `schema` is another.
    """
    return make_config(schema, Catalogue().manifest(name)["config"])


def read_header(config: Path) -> list[str]:
    """The comment that a configuration begins with, a line each: its command, time and number."""
    lines = []
    for line in config.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return lines
