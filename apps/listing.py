"""List projects with their configurations, and datasets with their token files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common.errors import ConfigError, DataError, did_you_mean
from common.training.projects import Project, find_projects
from common.utils.files import read_json
from common.utils.paths import display_path, get_datasets_dir
from common.utils.tables import format_rows


def list_projects() -> str:
    """List every project with the header of each configuration: command, time and number."""
    lines = []
    for project in find_projects():
        lines.append(f"{project.name}: {project.description}")
        for config in project.configs:
            command, *rest = read_header(config) or [f"(no header in {display_path(config)})"]
            lines += [f"  {command}", *(f"      {line}" for line in rest)]
        lines.append("")
    return "\n".join(lines)


def list_datasets() -> str:
    """Table of all prepared folders of token files with sizes."""
    rows = []
    for path in sorted(get_datasets_dir().glob("*/tokens/*/meta.json")):
        hint = f"delete the folder to prepare it again: rm -r {path.parent}"
        meta = read_json(path, DataError, hint)
        try:
            row = (meta["dataset"], path.parent.name, *_counts(meta), display_path(path.parent))
        except (KeyError, TypeError) as error:
            raise DataError(f"{path} is damaged ({error!r})", hint) from error
        rows.append(row)
    if not rows:
        return "no prepared datasets yet: run cli prepare --config FILE, or train"
    columns = ["dataset", "tokenizer", "vocabulary", "train tokens", "val tokens", "folder"]
    return format_rows(columns, rows, "table")


def describe_tokens(meta: dict[str, Any]) -> str:
    vocabulary, train, val = _counts(meta)
    return (
        f"{meta['dataset']}: {train:,} tokens for training, {val:,} for validation, "
        f"vocabulary of {vocabulary:,}"
    )


def _counts(meta: dict[str, Any]) -> tuple[int, int, int]:
    splits = meta["splits"]
    return meta["vocab_size"], splits["train"]["tokens"], splits["val"]["tokens"]


def find_project(name: str) -> Project:
    """Find a project by name. Raises ConfigError with the nearest name."""
    projects = {project.name: project for project in find_projects()}
    if name not in projects:
        raise ConfigError(f"there is no project '{name}'", did_you_mean(name, list(projects)))
    return projects[name]


def project_of_config(path: Path) -> Project | None:
    """The project whose folder contains the file: `projects/<name>/configs/file.yaml`."""
    inside = {project.directory: project for project in find_projects()}
    return next((inside[folder] for folder in path.resolve().parents if folder in inside), None)


def read_header(config: Path) -> list[str]:
    """The lines of the header comment of a configuration: command, time and number."""
    lines = []
    for line in config.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return lines
