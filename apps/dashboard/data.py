"""All queries of the dashboard to the store.

Functions are thread-safe: a catalogue, whose SQLite connection belongs to the thread that created
it, is never kept.
"""

from __future__ import annotations

import json
import os
import time
from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np

from apps.dashboard.curves import Floats
from common.errors import ExperimentError
from common.experiments.annotate import annotate_experiment
from common.experiments.catalogue import Broken, Catalogue, Overview, Place
from common.experiments.comparison import compare_groups
from common.experiments.conditions import (
    config_hash,
    describe_differences,
    diff_configs,
    different_facts,
    seed_of,
    why_incomparable,
)
from common.experiments.log import read_log
from common.experiments.metrics import (
    MetricSummary,
    metric_direction,
    preferred_split,
)
from common.experiments.recovery import open_catalogue
from common.experiments.rows import FIXED_COLUMNS, MANIFEST_COLUMN
from common.experiments.run_folders import folder_of
from common.experiments.store import is_running, packs_dir
from common.utils.paths import get_experiments_dir, get_runs_dir

annotate = annotate_experiment
SAMPLES_FILE = "samples.jsonl"
_SETTLED_SECONDS = 0.1  # mtime of a folder has the resolution of kernel ticks: at most 10 ms
_CACHE_BYTES = 512 * 2**20


class StoreState(NamedTuple):
    """Stamp that is equal as long as the store is unchanged."""

    changed_ns: int
    files: int
    live: tuple[tuple[str, int, int, bool], ...]  # (log, size, time of change, alive)


class Runs(NamedTuple):
    """The runs of the store, oldest first; `diverged` are those with a non-finite last loss."""

    overview: list[Overview]
    diverged: set[str]
    broken: list[Broken]


class Series(NamedTuple):
    """One metric of one split of a run in logging order. (points,) each, NaN if missing."""

    step: Floats
    epoch: Floats
    time: Floats  # seconds since the start
    value: Floats


AllSeries = dict[tuple[str, str], Series]  # by (metric, split)


def read_state() -> StoreState | None:
    """Compute the stamp: a few milliseconds for ten thousand files; None if the store is changing."""
    folder = get_experiments_dir()
    if not folder.exists():
        return StoreState(0, 0, ())
    changed_ns = folder.stat().st_mtime_ns
    if packs_dir().exists():
        changed_ns = max(changed_ns, packs_dir().stat().st_mtime_ns)
    if time.time_ns() - changed_ns < _SETTLED_SECONDS * 1e9:
        return None
    files, live = 0, []
    with os.scandir(folder) as entries:
        for entry in entries:
            files += 1
            if entry.name.endswith(".jsonl"):
                try:
                    status = entry.stat()
                except FileNotFoundError:
                    return None
                name = entry.name.removesuffix(".jsonl")
                stamp = (status.st_size, status.st_mtime_ns)
                live.append((entry.name, *stamp, is_running(name)))
    return StoreState(changed_ns, files, tuple(sorted(live)))


def read_runs() -> Runs:
    catalogue = open_catalogue()
    diverged = {summary.name for summary in catalogue.summaries("loss") if summary.diverged}
    return Runs(catalogue.overview(), diverged, catalogue.broken)


# Curves -------------------------------------------------------------------------------------------


def read_stamp(name: str) -> str:
    """Stamp of the rows of a run. Raises ExperimentError if the run was deleted."""
    return _find(name)[1]


def _find(name: str) -> tuple[Path, str, str]:
    """Return (file, stamp, name in the file) of a run."""
    for _ in range(2):  # a run being finished or packed is found at the second attempt
        if place := _places().get(name):
            path = get_experiments_dir() / place.file
            with suppress(FileNotFoundError):
                status = path.stat()
                return path, f"{path.suffix}-{status.st_size}-{status.st_mtime_ns}", place.stored
        _places_at.cache_clear()
    raise ExperimentError(f"there is no experiment '{name}'", "it may have been deleted")


def _places() -> dict[str, Place]:
    """{experiment: location}, updated when files of the store are added or removed."""
    folders = (get_experiments_dir(), packs_dir())
    changed = [folder.stat().st_mtime_ns for folder in folders if folder.exists()]
    return _places_at(get_experiments_dir(), *changed)


@lru_cache(maxsize=1)
def _places_at(folder: Path, *changed_ns: int) -> dict[str, Place]:
    return {place.name: place for place in Catalogue().places()}


class SeriesCache:
    """Cache of the rows of recently viewed runs, up to half a gigabyte."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._kept: OrderedDict[str, tuple[str, AllSeries, int]] = OrderedDict()

    def read(self, name: str) -> tuple[str, AllSeries]:
        """Return (stamp, series) of a run. Raises ExperimentError if it was deleted or is unreadable."""
        path, stamp, stored = _find(name)
        with self._lock:
            if name in self._kept and self._kept[name][0] == stamp:
                self._kept.move_to_end(name)
                return stamp, self._kept[name][1]
        try:
            series = _from_parquet(path, stored) if path.suffix == ".parquet" else _from_log(path)
        except (OSError, ValueError) as error:
            raise ExperimentError(f"cannot read {path.name}: {error}") from error
        size = sum(column.nbytes for entry in series.values() for column in entry)
        with self._lock:
            self._kept.pop(name, None)
            self._kept[name] = (stamp, series, size)
            while sum(size for *_, size in self._kept.values()) > _CACHE_BYTES:
                self._kept.popitem(last=False)
                if not self._kept:
                    break
        return stamp, series


def _from_parquet(path: Path, name: str) -> AllSeries:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:  # a pack also contains others
        table = pq.read_table(path, filters=[("experiment_name", "=", name)], use_threads=False)
    except pa.ArrowException as error:
        raise ValueError(str(error)) from error
    fixed = {name: table[name].to_numpy().astype(np.float64) for name in ("step", "epoch", "time")}
    splits = table["split"].combine_chunks().dictionary_encode()
    codes = splits.indices.to_numpy()
    series: AllSeries = {}
    for metric in table.column_names:
        if metric in (*FIXED_COLUMNS, MANIFEST_COLUMN):
            continue
        logged = ~table[metric].is_null().to_numpy()  # an empty cell was not logged; NaN was
        values = table[metric].to_numpy()
        for code, split in enumerate(splits.dictionary.to_pylist()):
            chosen = logged & (codes == code)
            if chosen.any():
                columns = (column[chosen] for column in (*fixed.values(), values))
                series[metric, split] = Series(*columns)
    return series


def _from_log(path: Path) -> AllSeries:
    points: dict[tuple[str, str], list[tuple[Any, ...]]] = {}
    for row in read_log(path).iter_rows():
        for metric, value in row["metrics"].items():
            point = (row["step"], row["epoch"], row["time"], value)
            points.setdefault((metric, row["split"]), []).append(point)
    return {
        key: Series(*(np.array(column, dtype=np.float64) for column in zip(*rows, strict=True)))
        for key, rows in points.items()
    }


# One run, and runs beside each other --------------------------------------------------------------


def read_manifest(name: str) -> dict[str, Any]:
    """The facts of a run. Raises ExperimentError with the nearest name."""
    return Catalogue().manifest(name)


def compare(names: Sequence[str]) -> dict[str, Any]:
    """Compare all metrics of the runs, and the configuration keys on which they differ.

    Metrics with a known direction come first; `judges` marks the main split of a metric. Values are
    in the order of `names`, None if missing. `better` has the indices of the best value and its
    ties, among runs that have not diverged; it is empty if the runs are not comparable by the
    metric, because their tokens differ.
    """
    catalogue = Catalogue()
    index = {name: position for position, name in enumerate(names)}
    found: dict[tuple[str, str], list[MetricSummary | None]] = {}
    for name, position in index.items():
        for summary in catalogue.summaries(name=name):
            row = found.setdefault((summary.metric, summary.split), [None] * len(names))
            row[position] = summary
    splits: dict[str, list[str]] = {}
    for metric, split in found:
        splits.setdefault(metric, []).append(split)
    manifests = [catalogue.manifest(name) for name in names]
    rows = []
    for (metric, split), summaries in found.items():
        judges = split == preferred_split(splits[metric])
        compared = _compared(metric, split, summaries, judges=judges)
        if any(why_incomparable(metric, split, manifests[0], other) for other in manifests[1:]):
            compared["better"] = {kind: [] for kind in compared["better"]}
        rows.append(compared)
    rows.sort(key=_most_telling)
    configs = diff_configs([manifest["config"] for manifest in manifests])
    configs |= different_facts(manifests)
    return {"metrics": rows, "configs": configs, "notes": describe_differences(manifests)}


def _most_telling(row: dict[str, Any]) -> tuple[object, ...]:
    return row["direction"] is None, row["metric"] != "loss", row["metric"], not row["judges"]


def compare_seeds(names: Sequence[str]) -> dict[str, Any]:
    """Compare the configurations of the runs over all finished seeds that have not diverged.

    {"groups": a representative run of each, "rows": [{"metric", "split", "direction", "cells"}],
    "notes"}. A cell has mean, half_width of its 95% interval, seeds, verdict (see `GroupResult`);
    and, except for the first group, p_value, test and more_seeds (still needed per group).
    """
    catalogue = Catalogue()
    groups = list({config_hash(catalogue.manifest(name)): name for name in names[::-1]}.values())
    groups.sort(key=names.index)
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    compared = compare_groups(catalogue, groups)
    for result in compared.results:
        facts = {"metric": result.metric, "split": result.split, "direction": result.direction}
        row = rows.setdefault(
            (result.metric, result.split), {**facts, "cells": [None] * len(groups)}
        )
        cell = {**asdict(result.estimate), "verdict": result.verdict}
        for key in ("p_value", "test", "more_seeds"):
            cell[key] = getattr(result.comparison, key, None)
        row["cells"][groups.index(result.group)] = cell
    splits: dict[str, list[str]] = {}
    for metric, split in rows:
        splits.setdefault(metric, []).append(split)
    for (metric, split), row in rows.items():
        row["judges"] = split == preferred_split(splits[metric])
    ordered = sorted(rows.values(), key=_most_telling)
    return {"groups": groups, "rows": ordered, "notes": compared.notes}


def read_seeds(names: Iterable[str]) -> dict[str, int | None]:
    """{run: seed} of the runs in the store."""
    catalogue = Catalogue()
    return {name: seed_of(catalogue.manifest(name)) for name in names if name in catalogue}


def _compared(
    metric: str, split: str, summaries: Sequence[MetricSummary | None], *, judges: bool
) -> dict[str, Any]:
    direction = metric_direction(metric)
    cells = [None if s is None else _cell(s, direction) for s in summaries]
    better = {kind: _better(cells, kind, direction) for kind in ("best", "last")}
    facts = {"metric": metric, "split": split, "direction": direction, "judges": judges}
    return {**facts, "cells": cells, "better": better}


def _cell(summary: MetricSummary, direction: str | None) -> dict[str, Any]:
    return {
        "best": summary.best(direction) if direction else None,
        "best_step": summary.best_step(direction) if direction else None,
        "last": summary.last,
        "last_step": summary.last_step,
        "diverged": summary.diverged,
    }


def _better(cells: Iterable[dict[str, Any] | None], kind: str, direction: str | None) -> list[int]:
    values = {
        index: cell[kind]
        for index, cell in enumerate(cells)
        if cell is not None and not cell["diverged"] and cell[kind] is not None
    }
    if direction is None or len(values) < 2:
        return []
    best = (min if direction == "min" else max)(values.values())
    return [index for index, value in values.items() if value == best]


def read_samples(name: str, step: int | None) -> dict[str, Any]:
    """The samples of a run at the last evaluation up to `step` (None: the last).

    {"steps": every step with samples, "step": the one shown, "samples": [{"prompt", "text"}],
    "damaged": number of skipped lines}. `name` must be in the store.
    """
    path = folder_of(name) / SAMPLES_FILE
    if path.parent.parent != get_runs_dir() or name in (".", ".."):
        raise ExperimentError(f"'{name}' has no run folder")
    by_step: dict[int, list[dict[str, str]]] = {}
    damaged = 0
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            entry = json.loads(line)
            sample = {"prompt": str(entry["prompt"]), "text": str(entry["text"])}
            by_step.setdefault(int(entry["step"]), []).append(sample)
        except (ValueError, KeyError, TypeError):
            damaged += 1  # half a line of a killed process
    steps = sorted(by_step)
    shown = max(
        (s for s in steps if step is None or s <= step), default=steps[0] if steps else None
    )
    samples = by_step[shown] if shown is not None else []
    return {"steps": steps, "step": shown, "samples": samples, "damaged": damaged}


def check_known(names: Iterable[str], known: Collection[str]) -> list[str]:
    """`names` without duplicates. Raises ExperimentError for unknown names."""
    chosen = list(dict.fromkeys(names))
    for name in chosen:
        if name not in known:
            raise ExperimentError(f"there is no experiment '{name}'", "it may have been deleted")
    return chosen
