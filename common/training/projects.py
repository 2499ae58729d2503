"""The projects of this repository: found by folder, imported on demand.

A project is a folder `projects/<name>` whose `train.py` holds `Config`, the schema of its
configurations, and `build(config)`, which returns an Experiment. The library names no project:
`load` imports the script given to a command, or the one that the store records for a run.
"""

from __future__ import annotations

import ast
import importlib
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from common.config import make_config
from common.data.config import DataConfig
from common.data.sources import check_source
from common.errors import ConfigError, ExperimentError
from common.experiments.catalogue import Catalogue
from common.training.config import BaseExperimentConfig, ExperimentConfig
from common.utils.paths import REPOSITORY_ROOT, display_path, get_datasets_dir

if TYPE_CHECKING:
    from common.training.experiment import Experiment

C = TypeVar("C", bound=BaseExperimentConfig)
CONFIG_SUFFIXES = (".yaml", ".yml", ".toml")


@dataclass(frozen=True)
class Project:
    directory: Path

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.directory.name

    @property
    def description(self) -> str:
        """The first line of the package's docstring; the package is not imported."""
        source = (self.directory / "__init__.py").read_text(encoding="utf-8")
        return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]

    @property
    def configs(self) -> list[Path]:
        """Its configuration files, by name."""
        return sorted(
            path
            for path in (self.directory / "configs").glob("*")
            if path.suffix in CONFIG_SUFFIXES
        )

    def load(self) -> tuple[type[BaseExperimentConfig], Callable[[Any], Experiment]]:
        """Import (schema, build) from its train.py. Raises ConfigError if one is missing."""
        parts = self.directory.relative_to(REPOSITORY_ROOT).parts
        train: Any = importlib.import_module(".".join([*parts, "train"]))
        try:
            return train.Config, train.build
        except AttributeError as error:
            raise ConfigError(
                f"projects/{self.name}/train.py defines no {error.name}",
                "every project defines both Config and build, see projects/baseline/train.py",
            ) from error

    def check_inputs(
        self, config: BaseExperimentConfig, path: Path, overrides: Sequence[str] = ()
    ) -> None:
        """Raise DataError, with a download command, if data of `config` is not on this machine.

        Only `cli prepare` uses the network. `path` and `overrides` are the source of `config`.
        """
        if isinstance(config, ExperimentConfig):
            check_source(
                config.data,
                f"projects/{self.name}",
                lambda dataset: self._way_to_get(config.data, dataset, path, overrides),
            )
        config.check_inputs()

    def _way_to_get(
        self, data: DataConfig, dataset: str, path: Path, overrides: Sequence[str]
    ) -> str:
        if data.hub is not None:
            command = ["cli", "prepare", self.name, "--config", str(path), *overrides]
            return f"download it with: {shlex.join(command)}"
        file = display_path(get_datasets_dir() / dataset / f"{dataset}.txt")
        readme = f"projects/{self.name}/README.md"
        return f"put UTF-8 text there, for example {file}; {readme} says more"


def find_projects() -> list[Project]:
    """Every project, by name."""
    scripts = (REPOSITORY_ROOT / "projects").glob("*/train.py")
    return [Project(directory) for directory in sorted(path.parent for path in scripts)]


def project_of_run(name: str) -> Project:
    """The project that trained experiment `name`. Raises ExperimentError if either is missing."""
    trained_by = Catalogue().manifest(name)["project"]
    projects = {project.name: project for project in find_projects()}
    if trained_by not in projects:
        raise ExperimentError(
            f"'{name}' was trained by the project '{trained_by}', which is not in projects/"
        )
    return projects[trained_by]


def recorded_config(name: str, schema: type[C]) -> C:
    """The latest configuration of experiment `name`, read from its log or Parquet file
    (`config.yaml` in the run's folder is a copy).

    Raises ExperimentError with the nearest name, and ConfigError if it does not match `schema`.
    """
    return make_config(schema, Catalogue().manifest(name)["config"])
