"""Check that the text of a configuration is on this machine, before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from common.data.config import DataConfig
from common.errors import DataError, did_you_mean
from common.utils.paths import display_path, folder_of, get_datasets_dir

GENERATED = ("python_stdlib", "stories", "speeches")  # on every machine, without the network


def check_source(config: DataConfig, needed_by: str, way: Callable[[str], str]) -> None:
    """Raise DataError if the text of `config` is not on this machine. Uses neither files nor network.

    Args:
        needed_by: name for the message, such as `projects/baseline`.
        way: returns how to get a dataset by name.
    """
    if config.mixture:
        for name in config.mixture:
            if not Path(name).expanduser().exists():
                one = config.model_copy(update={"dataset": name, "path": None, "mixture": {}})
                check_source(one, needed_by, way)
        return
    for path in (*([config.path] if config.path else []), *config.more_validation):
        if not path.exists():
            raise DataError(f"{needed_by} needs {path}: no such file or folder", "check data.path")
    if config.path is not None or config.streaming or config.dataset in GENERATED:
        return
    directory = folder_of(get_datasets_dir(), config.dataset)
    if not _has_content(directory):
        state = "is empty" if directory.exists() else "does not exist"
        raise DataError(
            f"{needed_by} needs the dataset '{config.dataset}', but {display_path(directory)} {state}",
            f"{way(config.dataset)}; or another data.dataset: {did_you_mean(config.dataset, dataset_names())}",
        )


def dataset_names() -> list[str]:
    """The values of `data.dataset` that are on this machine."""
    directory = get_datasets_dir()
    folders = sorted(directory.iterdir()) if directory.is_dir() else []
    return [*GENERATED, *(p.name for p in folders if p.name[0] != "." and _has_content(p))]


def _has_content(directory: Path) -> bool:
    """Whether `directory` contains anything besides token files and hidden files."""
    return directory.is_dir() and any(
        path.name != "tokens" and not path.name.startswith(".") for path in directory.iterdir()
    )
