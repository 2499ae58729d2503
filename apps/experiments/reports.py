"""Reports on the store as tables: lists, rankings, comparisons."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from common.experiments.catalogue import Broken, Catalogue
from common.experiments.metrics import VAL_QUICK, MetricSummary, metric_direction
from common.experiments.recovery import open_catalogue
from common.utils.tables import Report, format_rows

_LIST = ["name", "status", "project", "started", "duration", "parameters", "step", "best_loss"]
_LIST += ["split", "tags"]


def list_experiments(*, archived: bool = False, for_people: bool = True) -> Report:
    """List all experiments, oldest first, optionally with archived ones.

    For display times are local and durations in words; otherwise ISO 8601 and seconds.
    """
    catalogue = open_catalogue()
    if for_people:
        return Report(_LIST, catalogue.listing(archived), broken=catalogue.broken)
    rows: list[list[object]] = [
        [*run[: len(_LIST) - 1], ", ".join(run.tags)] for run in catalogue.overview(archived)
    ]
    return Report(_LIST, rows, broken=catalogue.broken)


def list_text(*, archived: bool = False) -> tuple[str, Sequence[Broken]]:
    """Return (`list_experiments` as a text table, the skipped files). Cached by the catalogue,
    since formatting ten thousand lines dominates the time."""
    catalogue = open_catalogue()
    zone = f"{time.tzname} {time.timezone} {os.environ.get('TZ')}"

    def write() -> str:
        return format_rows(_LIST, catalogue.listing(archived), "table")

    return catalogue.kept_text(f"list {archived} {zone}", write), catalogue.broken


def summarise_experiments() -> Report:
    """One row per metric: the number of runs, and the best one if the direction is known."""
    catalogue = open_catalogue()
    rows: list[list[object]] = []
    for metric, split, experiments, values in catalogue.counts():
        direction = metric_direction(metric)
        best, name = None, None
        if direction is not None:
            ((_, summary),) = catalogue.best(metric, direction, split, top=1)
            best, name = summary.best(direction), summary.name
        rows.append([metric, split, experiments, values, best, name])
    statuses = catalogue.statuses()
    counts = ", ".join(f"{count} {status}" for status, count in sorted(statuses.items()))
    title = f"{sum(statuses.values())} experiments ({counts or 'none'})"
    columns = ["metric", "split", "experiments", "values", "best", "best_experiment"]
    return Report(columns, rows, title, catalogue.broken)


def best_experiments(
    metric: str, *, direction: str | None = None, split: str | None = None, top: int = 10
) -> Report:
    """Rank the `top` runs by the best value of `metric`, diverged ones last; see `Catalogue.best`
    for runs evaluated only on few batches, and for errors."""
    catalogue = open_catalogue()
    ranked = catalogue.best(metric, direction, split, top)
    direction = direction or metric_direction(metric) or "min"
    rows: list[list[object]] = []
    for rank, (manifest, summary) in enumerate(ranked, start=1):
        status = "diverged" if summary.diverged else manifest["status"]
        value, step = summary.best(direction), summary.best_step(direction)
        rows.append([rank, summary.name, value, step, summary.split, status, manifest["project"]])
    columns = ["rank", "name", metric, "step", "split", "status", "project"]
    notes = _about_few_batches(catalogue, metric, ranked) if split is None else []
    notes += _about_bounds(metric, ranked)
    return Report(columns, rows, broken=catalogue.broken, notes=notes)


def _about_few_batches(
    catalogue: Catalogue, metric: str, ranked: Sequence[tuple[Mapping[str, Any], MetricSummary]]
) -> list[str]:
    """Notes of a ranking by `val` on runs with values of few batches."""
    from common.experiments.conditions import holds_quick, some_of

    if not ranked or ranked[0][1].split != "val":
        return []
    notes = []
    if names := catalogue.quick_alone(metric):
        notes.append(
            f"not yet evaluated on the whole of val: {some_of(names)}; ranked after the others by "
            f"{VAL_QUICK}, which uses few batches (--split {VAL_QUICK} ranks all runs by it)"
        )
    if names := [manifest["name"] for manifest, _ in ranked if holds_quick(manifest)]:
        notes.append(
            f"val also has values of few batches, from an earlier version: {some_of(names)}"
        )
    return notes


def _about_bounds(
    metric: str, ranked: Sequence[tuple[Mapping[str, Any], MetricSummary]]
) -> list[str]:
    """A note on runs whose `metric` is an upper bound, which is ranked after the others."""
    from common.experiments.conditions import is_bound, some_of
    from common.experiments.metrics import is_per_token

    bounds = [manifest["name"] for manifest, _ in ranked if is_bound(manifest)]
    if not bounds or not is_per_token(metric):
        return []
    return [f"upper bounds (<=), ranked after the others: {some_of(bounds)}"]


_ONE_RUN_EACH = "single runs: seeds alone can cause such differences; --compare ... --group tests configurations"


def compare_experiments(names: Sequence[str]) -> Report:
    """One row per metric and run: best value and its step, last value, and the difference of the
    best (of the last, if the direction is unknown) from the first run's: `lower`, `higher`,
    `equal`. Single runs do not show which configuration is better.

    Raises ExperimentError for an unknown name.
    """
    from common.experiments.conditions import changes_of, describe_differences

    names = list(dict.fromkeys(names))
    catalogue = open_catalogue()
    manifests = {name: catalogue.manifest(name) for name in names}
    found: dict[tuple[str, str], dict[str, MetricSummary]] = {}
    for name in names:
        for summary in catalogue.summaries(name=name):
            found.setdefault((summary.metric, summary.split), {})[name] = summary
    rows: list[list[object]] = []
    for (metric, split), summaries in sorted(found.items()):
        direction = metric_direction(metric)
        base = summaries.get(names[0])
        for name in [name for name in names if name in summaries]:
            summary = summaries[name]
            best = step = None
            if direction is not None:
                best, step = summary.best(direction), summary.best_step(direction)
            row: list[object] = [
                metric,
                split,
                {"min": "lower", "max": "higher"}.get(direction or ""),
            ]
            row += [name, best, step, summary.last]
            rows.append([*row, *_difference(base, summary, direction, manifests)])
    columns = ["metric", "split", "better_is", "name", "best", "step", "last"]
    notes = describe_differences(list(manifests.values()))
    for name, manifest in manifests.items():
        if changes := changes_of(manifest):
            notes.append(f"a resume of {name} changed {'; '.join(changes)}")
    notes += [_ONE_RUN_EACH] if len(names) > 1 else []
    return Report([*columns, "difference", "verdict"], rows, "", catalogue.broken, notes)


def _difference(
    base: MetricSummary | None,
    other: MetricSummary,
    direction: str | None,
    manifests: Mapping[str, Mapping[str, Any]],
) -> tuple[float | None, str | None]:
    """Return (difference of `other` from `base`, its meaning)."""
    from common.experiments.conditions import why_incomparable

    if other.diverged and direction:
        return None, "diverged"
    if base is None or base is other:
        return None, None
    pair = manifests[base.name], manifests[other.name]
    if reason := why_incomparable(base.metric, base.split, *pair):
        return None, f"not compared: {reason}"
    if direction is None:
        values = base.last, other.last
    else:
        values = base.best(direction), other.best(direction)
    if values[0] is None or values[1] is None:
        return None, None
    difference = values[1] - values[0]
    return difference, "equal" if difference == 0 else "lower" if difference < 0 else "higher"


_STUDENT = (
    "95% intervals and tests are Student's t over seeds, for each line separately: exact for normally "
    "distributed seeds; for strongly skewed ones the interval of 3 to 10 seeds covers 82 to 84%"
)


def compare_seeds(names: Sequence[str]) -> Report:
    """One row per metric and configuration, over all its seeds; from the second on also the
    difference from the first. Raises like `compare_groups`."""
    from common.experiments.comparison import compare_groups

    rows: list[list[object]] = []
    catalogue = open_catalogue()
    compared = compare_groups(catalogue, list(dict.fromkeys(names)))
    for result in compared.results:
        mean, other = result.estimate, result.comparison
        row: list[object] = [result.metric, result.split, result.group, mean.seeds]
        row += [mean.mean, mean.half_width]
        if other is None:
            rows.append([*row, *[None] * 6, result.verdict])
            continue
        row += [other.difference, other.low, other.high, other.test, other.p_value]
        rows.append([*row, other.more_seeds, result.verdict])
    columns = ["metric", "split", "configuration", "seeds", "mean", "ci95"]
    columns += ["difference", "low", "high", "test", "p", "more_seeds", "verdict"]
    return Report(columns, rows, "", catalogue.broken, [*compared.notes, _STUDENT])


def diff_experiments(names: Sequence[str]) -> Report:
    """The configuration keys on which the runs differ, then other recorded differences: precision,
    threads, machine, tokens. Raises ExperimentError for an unknown name."""
    from common.experiments.conditions import changes_of, diff_configs, different_facts

    names = list(dict.fromkeys(names))
    catalogue = open_catalogue()
    manifests = [catalogue.manifest(name) for name in names]
    different = diff_configs([manifest["config"] for manifest in manifests])
    title = "" if different else "their configurations are the same"
    facts = different_facts(manifests)
    rows: list[list[object]] = [[key, *values] for key, values in {**different, **facts}.items()]
    changes = ["; ".join(changes_of(manifest)) or None for manifest in manifests]
    rows += [["changed by a resume", *changes]] if any(changes) else []
    return Report(["key", *names], rows, title, catalogue.broken)
