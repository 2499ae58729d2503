"""Shared by the tests of the importers: what the store holds after an import, and damaged sources."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from apps.importing import ImportReport, import_experiments
from common.errors import ExperimentError
from common.experiments.catalogue import Catalogue
from common.experiments.rows import FIXED_COLUMNS
from common.experiments.store import parquet_path

Row = dict[str, Any]
Value = tuple[int, str, str, str]  # step, split, metric, repr of the number


def stored_rows(name: str) -> list[Row]:
    """The rows of an experiment, each with only the metrics that it has."""
    rows = pq.read_table(parquet_path(name)).to_pylist()
    return [{k: v for k, v in row.items() if v is not None} for row in rows]


def stored_manifest(name: str) -> dict[str, Any]:
    return Catalogue().manifest(name)


def column(name: str, metric: str, split: str = "train") -> list[tuple[int, float]]:
    """[(step, value)] of a metric where it was logged."""
    rows = [row for row in stored_rows(name) if row["split"] == split and metric in row]
    return [(row["step"], row[metric]) for row in rows]


def stored_values(name: str) -> set[Value]:
    return {
        (row["step"], row["split"], metric, repr(value))
        for row in stored_rows(name)
        for metric, value in row.items()
        if metric not in FIXED_COLUMNS
    }


def import_one(source: Path, **options: Any) -> str:
    """The name of the one experiment that `source` gives."""
    report = import_experiments(source, **options)
    assert len(report.imported) == 1, report
    return report.imported[0]


def try_import(source: Path) -> ImportReport:
    """As import_experiments, an error that the user is told counting as a refusal."""
    try:
        return import_experiments(source)
    except ExperimentError as error:
        return ImportReport([], [], [(str(source), error.message)])


def check_cuts(
    source: Path,
    damaged: Path,
    whole: set[Value],
    fresh_store: Callable[[], None],
    positions: int = 15,
) -> list[int]:
    """Cut the file `damaged` (in `source`) at many bytes and import what is left, each time anew.

    Nothing but a refusal may come of it, and every number that is read is one of `whole`.
    Returns how many numbers were read at each cut.
    """
    content = damaged.read_bytes()
    chosen = {0, 1, len(content) // 2, len(content) - 1}
    chosen |= set(random.Random(0).sample(range(len(content)), min(positions, len(content))))
    counts = []
    for position in sorted(chosen):
        damaged.write_bytes(content[:position])
        fresh_store()
        report = try_import(source)
        values = {value for name in report.imported for value in stored_values(name)}
        assert values <= whole, f"cut at {position}: {sorted(values - whole)[:3]}"
        assert report.imported or report.refused
        counts.append(len(values))
    damaged.write_bytes(content)
    return counts
