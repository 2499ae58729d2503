"""What there is to work with: projects with their configurations, and datasets with their token files."""

from __future__ import annotations

from typing import Any

from common.errors import DataError
from common.training.projects import find_projects, read_header
from common.utils.files import read_json
from common.utils.paths import display_path, get_datasets_dir
from common.utils.tables import format_rows


def list_projects() -> str:
    """Every project, and below it the header of each configuration: command, time and number."""
    lines = []
    for project in find_projects():
        lines.append(f"{project.name}: {project.description}")
        for config in project.configs:
            command, *rest = read_header(config) or [f"(no header in {display_path(config)})"]
            lines += [f"  {command}", *(f"      {line}" for line in rest)]
        lines.append("")
    return "\n".join(lines)


def list_datasets() -> str:
    """Every prepared folder of token files with its size, as a table."""
    rows = []
    for path in sorted(get_datasets_dir().glob("*/tokens/*/meta.json")):
        hint = f"delete the folder, it is made again: rm -r {path.parent}"
        meta = read_json(path, DataError, hint)
        try:
            row = (meta["dataset"], path.parent.name, *_counts(meta), display_path(path.parent))
        except (KeyError, TypeError) as error:
            raise DataError(f"{path} is damaged ({error!r})", hint) from error
        rows.append(row)
    if not rows:
        return "no dataset is prepared yet: cli prepare --config FILE, or train"
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
