"""Paths of assets. `RESEARCH_ASSETS_DIR` moves everything large to another disk."""

from __future__ import annotations

import os
from pathlib import Path

from common.errors import ConfigError

_HINT = "set RESEARCH_ASSETS_DIR to a folder that you can write to"
REPOSITORY_ROOT = Path(__file__).resolve().parents[2]


def get_assets_dir() -> Path:
    """`assets/` of this repository, or `$RESEARCH_ASSETS_DIR`, read at every call so that tests can change it.

    Raises ConfigError for a path that cannot be a folder: a loop of links, an unknown user, a file,
    or a name that is not UTF-8, which formats and databases below it require.
    """
    configured = os.environ.get("RESEARCH_ASSETS_DIR")
    shown = ascii(configured or str(REPOSITORY_ROOT))
    try:
        path = Path(configured).expanduser().resolve() if configured else REPOSITORY_ROOT / "assets"
        str(path).encode()
        usable = not path.exists() or path.is_dir()  # in this order: another process may make it
    except (RuntimeError, OSError, UnicodeEncodeError) as error:
        reason = "it is not UTF-8" if isinstance(error, UnicodeEncodeError) else str(error)
        raise ConfigError(f"assets cannot be in {shown}: {reason}", _HINT) from error
    if not usable:
        raise ConfigError(f"assets cannot be in {shown}: it is a file", _HINT)
    return path


def folder_of(parent: Path, name: str) -> Path:
    """`parent / name` for an untrusted name. Raises ConfigError for one that leads elsewhere."""
    if not name or Path(name).name != name or name.startswith(".") or not name.isprintable():
        raise ConfigError(
            f"{name!r} is not a valid folder name in {display_path(parent)}",
            "use letters, digits, '.', '_' and '-', a letter or digit first",
        )
    return parent / name


def get_datasets_dir() -> Path:
    """Folder of raw datasets, each with its token files."""
    return get_assets_dir() / "datasets"


def get_models_dir() -> Path:
    """Folder of models downloaded from the hub."""
    return get_assets_dir() / "models"


def get_tokenizers_dir() -> Path:
    """Folder of separately trained tokenizers."""
    return get_assets_dir() / "tokenizers"


def get_experiments_dir() -> Path:
    """Folder of experiments: a Parquet file per finished one, a log per running one."""
    return get_assets_dir() / "outputs" / "experiments"


def get_runs_dir() -> Path:
    """Folder of runs: a folder per experiment with config, manifest, checkpoints, samples."""
    return get_assets_dir() / "outputs" / "runs"


def get_service_dir() -> Path:
    """Folder of the training service: requests, events, keys."""
    return get_assets_dir() / "outputs" / "service"


def display_path(path: Path) -> str:
    """The shorter of the absolute path and the one relative to the current folder."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
