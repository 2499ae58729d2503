"""Names of experiments: check, generate and claim them.

A name is claimed by creating its log exclusively, so that two processes never share one.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from common.errors import ExperimentError
from common.experiments.catalogue import Catalogue
from common.experiments.store import check_name, log_path, packs_dir, parquet_path
from common.utils.paths import get_experiments_dir, get_runs_dir


def exists(name: str) -> bool:
    """Whether an experiment of this name is live or stored."""
    return log_path(name).exists() or is_finished(name)


def is_finished(name: str) -> bool:
    """Whether an experiment `name` is stored, in a file or in a pack."""
    path = parquet_path(name)
    if path.exists() or _is_aside(name):
        return True
    # Check twice: it may move from a pack to a file in between.
    return packs_dir().exists() and (_is_packed(name) or path.exists())


def _is_aside(name: str) -> bool:
    """Whether another file has an experiment of this name, see `free_parquet_path`."""
    return any(get_experiments_dir().glob(f"{name}@*.parquet"))


def _is_packed(name: str) -> bool:
    return bool(Catalogue().places("stored = ? AND file LIKE 'packs/%'", name))


def claim_name(name: str) -> None:
    """Reserve `name` by creating its empty log. Raises ExperimentError if it is taken or invalid."""
    check_name(name)
    get_experiments_dir().mkdir(parents=True, exist_ok=True)
    taken = ExperimentError(
        f"an experiment named '{name}' already exists",
        f"choose another name, for example '{next_name(name)}'",
    )
    try:
        log_path(name).open("x").close()
    except FileExistsError:
        raise taken from None
    # Check after the claim: a finishing run publishes its Parquet file before its log is deleted.
    if is_finished(name):
        log_path(name).unlink(missing_ok=True)
        raise taken


def next_name(name: str) -> str:
    """The first free `<stem>_<number>` after `name`: exp_001 -> exp_002, baseline -> baseline_002."""
    match = re.fullmatch(r"(.*?)_?(\d+)", name)
    stem, number, width = (match[1], int(match[2]), len(match[2])) if match else (name, 1, 3)
    packed = _packed_names()
    while True:
        number += 1
        ending = f"{number:0{width}d}"
        candidate = f"{stem[: 127 - len(ending)]}_{ending}" if stem else ending
        files = (log_path(candidate), parquet_path(candidate), get_runs_dir() / candidate)
        is_free = candidate not in packed and not any(path.exists() for path in files)
        if is_free and not _is_aside(candidate):
            return candidate


def _packed_names() -> Collection[str]:
    return Catalogue().packed() if packs_dir().exists() else ()
