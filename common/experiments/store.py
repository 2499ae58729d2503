"""Names and files of the store: `<name>.jsonl` while a run is live, `<name>.parquet` once it is
finished, and `packs/` for the cold ones of a large store.

A name is claimed by creating its log exclusively, so two processes never share one.
"""

from __future__ import annotations

import math
import numbers
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import ExperimentError
from common.experiments.log import read_log
from common.utils.manifest import (
    check_manifest,
    create_manifest,
    identity,
    now,
    plain_facts,
    unique_name,
)
from common.utils.paths import get_experiments_dir, get_runs_dir
from common.utils.plain import NO_TEXT, is_text

if TYPE_CHECKING:
    import pandas as pd

FIXED_COLUMNS = ("experiment_name", "step", "epoch", "split", "time")
MANIFEST_COLUMN = "manifest"  # of a pack
RUN_COLUMNS: dict[str, str | list[str]] = {  # of the view `runs`, with their types in DuckDB
    "name": "VARCHAR",
    "status": "VARCHAR",
    "project": "VARCHAR",
    "started": "TIMESTAMPTZ",
    "finished": "TIMESTAMPTZ",
    "duration": "DOUBLE",  # seconds
    "config": "VARCHAR",  # JSON
    "git_commit": "VARCHAR",
    "seed": "BIGINT",
    "host": "VARCHAR",
    "parameters": "BIGINT",
    "tokens": "BIGINT",
    "tags": ["VARCHAR"],
    "note": "VARCHAR",
    "archived": "BOOLEAN",
    "precision": "VARCHAR",
    "compiled": "BOOLEAN",
    "threads": "BIGINT",
    "device": "VARCHAR",
    "cpu": "VARCHAR",
}
RUNS_ENDING = ".runs.csv"  # of the table of runs beside an exported CSV
FOOTER_KEY = b"experiment"
RESERVED_NAMES = (*FIXED_COLUMNS, MANIFEST_COLUMN)
# Logs beside those of runs, whose names begin with a letter or a digit.
CHECKSUMS = "_checksums.jsonl"
REMOTE = "_remote.jsonl"
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"


def log_path(name: str) -> Path:
    return get_experiments_dir() / f"{name}.jsonl"


def parquet_path(name: str) -> Path:
    return get_experiments_dir() / f"{name}.parquet"


def packs_dir() -> Path:
    return get_experiments_dir() / "packs"


def exists(name: str) -> bool:
    return log_path(name).exists() or is_finished(name)


def is_finished(name: str) -> bool:
    """Whether an experiment `name` is stored, in a file of its own or in a pack."""
    path = parquet_path(name)
    if path.exists() or _is_aside(name):
        return True
    # Looked for twice: it may move from a pack into a file in between.
    return packs_dir().exists() and (_is_packed(name) or path.exists())


def _is_aside(name: str) -> bool:
    """Whether a file holds an experiment of this name beside another one, see `free_parquet_path`."""
    return any(get_experiments_dir().glob(f"{name}@*.parquet"))


def _is_packed(name: str) -> bool:
    from common.experiments.catalogue import Catalogue

    return bool(Catalogue().places("stored = ? AND file LIKE 'packs/%'", name))


def free_parquet_path(name: str, identifier: str) -> Path:
    """Where the experiment `identifier` is to be stored: `<name>.parquet`, or `<name>@<id>.parquet`
    beside another one. Nothing is ever replaced."""
    path, stem = parquet_path(name), unique_name(name, identifier)
    while path.exists():
        path, stem = parquet_path(stem), f"{stem}+"
    return path


def is_stored(name: str) -> bool:
    """Whether the run that the log of `name` holds stands in a file of its own already."""
    from common.experiments.parquet import read_manifest

    identifier = identity(read_log(log_path(name)).manifest)
    paths = (parquet_path(name), parquet_path(unique_name(name, identifier)))
    return any(path.exists() and identity(read_manifest(path)) == identifier for path in paths)


def _packed_names() -> Collection[str]:
    from common.experiments.catalogue import Catalogue

    return Catalogue().packed() if packs_dir().exists() else ()


def is_name(name: str) -> bool:
    return re.fullmatch(_NAME, name) is not None


def check_name(name: str) -> None:
    """Raises ExperimentError for what cannot name an experiment."""
    if not is_name(name):
        raise ExperimentError(
            f"{name!r} cannot name an experiment",
            "use letters, digits, '.', '_' and '-' (at most 128), a letter or digit first",
        )


def claim_name(name: str) -> None:
    """Reserve `name` by creating its empty log. Raises ExperimentError when it is taken or not a name."""
    check_name(name)
    get_experiments_dir().mkdir(parents=True, exist_ok=True)
    taken = ExperimentError(
        f"an experiment named '{name}' exists already",
        f"choose another name, for example '{next_name(name)}'",
    )
    try:
        log_path(name).open("x").close()
    except FileExistsError:
        raise taken from None
    # Checked after the claim: a run that finishes now shows its Parquet file before its log goes.
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


def make_row(
    step: Any,
    split: Any,
    epoch: Any,
    time: Any,
    metrics: Mapping[str, Any],
    known: dict[str, str],
) -> dict[str, Any]:
    """One checked row, as the log holds it. Raises ExperimentError for what the file could not hold.

    `known` is that of `check_metrics`.
    """
    is_whole = type(step) is int or (isinstance(step, numbers.Real) and float(step).is_integer())
    if not is_whole or not -(2**63) <= int(step) < 2**63:
        raise ExperimentError(f"'step' must be a whole number of 64 bits, got {step!r}")
    if not isinstance(split, str) or not split or not is_text(split):
        raise ExperimentError(f"'split' must be a text such as train or val, got {split!r}")
    for name, value in (("epoch", epoch), ("time", time)):
        if not (value is None or type(value) is float or isinstance(value, numbers.Real)):
            raise ExperimentError(f"'{name}' must be a number, got {value!r}")
    return {
        "step": int(step),
        "split": split,
        "epoch": None if epoch is None or math.isnan(epoch) else float(epoch),
        "time": None if time is None or math.isnan(time) else float(time),
        "metrics": check_metrics(metrics, known),
    }


def check_metrics(metrics: Mapping[str, Any], known: dict[str, str]) -> dict[str, float]:
    """The metrics as floats. `known` maps lower-cased to real names seen before, and is extended.

    Raises ExperimentError for a reserved name, one that differs from another only in case, and a
    value that is not one number. NaN and infinities are numbers.
    """
    checked = {}
    for name, value in metrics.items():
        # The common case first: this is called at every logged step.
        if type(value) is float and known.get(name.lower()) == name:
            checked[name] = value
            continue
        if not name or name.lower() in RESERVED_NAMES:
            raise ExperimentError(
                f"a metric cannot be named '{name}'", f"reserved are {', '.join(RESERVED_NAMES)}"
            )
        if not is_text(name):
            raise ExperimentError(f"a metric cannot be named {name!r}", NO_TEXT)
        if known.setdefault(name.lower(), name) != name:
            other = known[name.lower()]
            raise ExperimentError(f"metrics '{other}' and '{name}' differ only in case")
        # Scalars of PyTorch and NumPy have `item`; neither library is needed to know that.
        number = (
            value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else value
        )
        if not isinstance(number, numbers.Real):
            raise ExperimentError(f"metric '{name}' must be a number, got {value!r}")
        checked[name] = float(number)
    return checked


def finish_log(name: str) -> Path:
    """Turn the log of `name` into its Parquet file; a crash in between loses nothing."""
    from common.experiments.parquet import write_parquet

    content = read_log(log_path(name))
    path = free_parquet_path(name, identity(content.manifest))
    write_parquet(content.manifest, content.iter_rows(), content.metrics, path)
    log_path(name).unlink(missing_ok=True)  # check_store may have been faster
    return path


def save_experiment(
    name: str, dataframe: pd.DataFrame, metadata: Mapping[str, Any] | None = None
) -> Path:
    """Store a finished experiment from a table of metrics and return its Parquet file.

    `dataframe` has a row per step. `step`, `epoch`, `split` and `time` are taken where they are
    there (`step` counts the rows otherwise); every other column must hold numbers.
    `metadata` is anything that `to_plain` makes JSON of: `config`, `project`, `seed`, `tags`,
    `parameters` and `tokens` fill the columns of `runs`, the rest is kept beside them.
    Raises ExperimentError when the name is taken, or when a column or the metadata do not fit.
    """
    from common.experiments.parquet import write_parquet

    check_name(name)
    manifest = _manifest(name, metadata or {})
    rows = _dataframe_rows(dataframe)
    claim_name(name)
    try:
        path = write_parquet(manifest, rows)
    finally:
        log_path(name).unlink(missing_ok=True)
    publish(name)
    return path


def publish(name: str) -> None:
    """What follows on a finish: the catalogue, and the object store where there is one.

    The experiment is stored by now, so what fails here is told and ends no training.
    """
    if os.environ.get("RESEARCH_EXPERIMENTS_URI"):
        from common.experiments.remote import upload_finished

        upload_finished(name)
    try:
        enter_into_catalogue()
    except (OSError, ExperimentError, ValueError) as error:
        from common.utils.logging import (
            get_logger,
        )  # with logging, 15 ms that a list can do without

        message = f"{name} is stored, but the catalogue or a pack could not be written: {error}"
        get_logger("experiments").warning(message)


def enter_into_catalogue() -> None:
    """Let the catalogue read what was just stored, and pack what is cold when there is much."""
    # Done here, where pyarrow is loaded already, so that the next --list need not load it.
    from common.experiments.catalogue import Catalogue
    from common.experiments.packs import pack_cold_experiments

    pack_cold_experiments()
    Catalogue()


def _manifest(name: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
    manifest = create_manifest(name, project="", config={}, seed=None, tags=[])
    manifest |= {"status": "finished", "finished": now()} | {**metadata} | {"name": name}
    try:
        return check_manifest(plain_facts(manifest))
    except ValueError as error:
        raise ExperimentError(f"the metadata of '{name}' cannot be stored: {error}") from error


def _dataframe_rows(dataframe: pd.DataFrame) -> list[dict[str, Any]]:
    known: dict[str, str] = {}
    rows = []
    padding = _padding(dataframe)
    for index, record in enumerate(dataframe.to_dict(orient="records")):
        fixed = {key: record.get(key) for key in ("epoch", "time")}
        step, split = record.get("step", index), record.get("split", "train")
        metrics = {
            str(name): value
            for name, value in record.items()
            if name not in FIXED_COLUMNS and value is not None and (split, name) not in padding
        }
        rows.append(make_row(step, split, metrics=metrics, known=known, **fixed))
    return rows


def _padding(dataframe: pd.DataFrame) -> set[tuple[Any, Any]]:
    """The (split, metric) that were not logged: pandas writes NaN where a metric of one split has no
    value on the rows of another. A metric that is NaN everywhere has diverged."""
    if "split" not in dataframe:
        return set()
    metrics = [name for name in dataframe if name not in FIXED_COLUMNS]
    empty = dataframe[metrics].isna().groupby(dataframe["split"]).all()
    return {
        (split, name)
        for name in metrics
        if not empty[name].all()
        for split in empty.index[empty[name]]
    }
