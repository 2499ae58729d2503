"""Rows of logs and tables: their columns, and validation of values."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from common.errors import ExperimentError
from common.utils.plain import NO_TEXT, is_text

if TYPE_CHECKING:
    import pandas as pd

FIXED_COLUMNS = ("experiment_name", "step", "epoch", "split", "time")
MANIFEST_COLUMN = "manifest"  # of packs
FOOTER_KEY = b"experiment"  # key of the manifest in a Parquet footer
RUN_COLUMNS: dict[str, str | list[str]] = {  # columns of the view `runs`, with DuckDB types
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
RESERVED_NAMES = (*FIXED_COLUMNS, MANIFEST_COLUMN)


def make_row(
    step: Any,
    split: Any,
    epoch: Any,
    time: Any,
    metrics: Mapping[str, Any],
    known: dict[str, str],
) -> dict[str, Any]:
    """Validate a row for the log. Raises ExperimentError for values that cannot be stored.

    `known`: see `check_metrics`.
    """
    is_whole = type(step) is int or (isinstance(step, numbers.Real) and float(step).is_integer())
    if not is_whole or not -(2**63) <= int(step) < 2**63:
        raise ExperimentError(f"'step' must be a 64-bit integer, got {step!r}")
    if not isinstance(split, str) or not split or not is_text(split):
        raise ExperimentError(f"'split' must be a string such as train or val, got {split!r}")
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
    """Convert metrics to floats. `known` maps lower-cased to original names seen before, and is extended.

    Raises ExperimentError for a reserved name, one that differs from another only in case, and a
    value that is not a single number. NaN and infinities are allowed.
    """
    checked = {}
    for name, value in metrics.items():
        # The common case first, since this runs at every logged step.
        if type(value) is float and known.get(name.lower()) == name:
            checked[name] = value
            continue
        if not name or name.lower() in RESERVED_NAMES:
            raise ExperimentError(
                f"a metric cannot be named '{name}'", f"reserved names: {', '.join(RESERVED_NAMES)}"
            )
        if not is_text(name):
            raise ExperimentError(f"a metric cannot be named {name!r}", NO_TEXT)
        if known.setdefault(name.lower(), name) != name:
            other = known[name.lower()]
            raise ExperimentError(f"metrics '{other}' and '{name}' differ only in case")
        # Scalars of PyTorch and NumPy have `item`; no import of either is needed.
        number = (
            value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else value
        )
        if not isinstance(number, numbers.Real):
            raise ExperimentError(f"metric '{name}' must be a number, got {value!r}")
        checked[name] = float(number)
    return checked


def dataframe_rows(dataframe: pd.DataFrame) -> list[dict[str, Any]]:
    """Validate the rows of a table, see `save_experiment`."""
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
    """(split, metric) pairs that were not logged: pandas fills a metric of one split with NaN on
    the rows of another. A metric that is NaN everywhere has diverged."""
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
