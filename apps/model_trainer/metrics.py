"""Rows of a run, from its live log or from its stored file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from common.experiments.log import read_log
from common.experiments.members import read_members
from common.experiments.parquet import table_to_rows
from common.experiments.store import log_path

Row = dict[str, Any]  # step, split, epoch, time and metrics: a metric may have any name


def rows_of(run_id: str) -> tuple[int, list[Row]]:
    """(number of resumes so far, the rows that count). A finished run has the number of its starts before."""
    path = log_path(run_id)
    try:
        content = read_log(path)
        return content.resumes, [_plain(row) for row in content.iter_rows()]
    except FileNotFoundError:
        ((manifest, table),) = read_members([run_id])
        resumes = max(len(manifest.get("starts", [])) - 1, 0)
        return resumes, [_plain(row) for row in table_to_rows(table)]


def _plain(row: Mapping[str, Any]) -> Row:
    metrics = {name: _finite(value) for name, value in row["metrics"].items()}
    return {
        **{key: _finite(row[key]) for key in ("step", "split", "epoch", "time")},
        "metrics": metrics,
    }


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
