"""Compare configurations over seeds: groups of runs that differ only in the seed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from common.errors import ExperimentError
from common.experiments.catalogue import Catalogue
from common.experiments.conditions import (
    changes_of,
    config_hash,
    config_hash_of,
    describe_differences,
    holds_quick,
    other_tokens,
    seed_of,
    some_of,
    why_incomparable,
)
from common.experiments.metrics import metric_direction

if TYPE_CHECKING:
    from common.experiments.statistics import Comparison, Estimate


@dataclass(frozen=True)
class GroupResult:
    """One metric of one group of seeds; `comparison` is with the first group (None for the first
    group, or if `incomparable` gives a reason)."""

    metric: str
    split: str
    direction: str
    group: str
    estimate: Estimate
    comparison: Comparison | None
    incomparable: str | None = None

    @property
    def verdict(self) -> str | None:
        """The relation to the first group: better, worse, not told apart, or a reason for none."""
        if self.incomparable:
            return f"not compared: {self.incomparable}"
        if (found := self.comparison) is None:
            return None
        if found.p_value is None:
            return "too few seeds" if found.test is None else "no spread"
        if not found.significant:
            return "not told apart"
        return "better" if (found.difference < 0) == (self.direction == "min") else "worse"


@dataclass
class Group:
    """The runs of one configuration: {run: its seed, or its name if none is recorded}, and manifests."""

    name: str
    runs: dict[str, int | str] = field(default_factory=dict)
    manifests: dict[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass
class GroupComparison:
    """`notes` are sentences about excluded runs and differences besides the configuration."""

    results: list[GroupResult]
    notes: list[str]


def compare_groups(catalogue: Catalogue, names: Sequence[str]) -> GroupComparison:
    """Compare the configurations of `names` over their seeds: all finished runs that have not diverged.

    A run counts with its best value of every metric with a known direction; runs of one seed count
    once, with their mean. Runs whose configuration was changed by a resume, and runs on other
    tokens than the named one, are excluded. Raises ExperimentError for an unknown name and for two
    names of one configuration.
    """
    groups, notes = _groups(catalogue, names)
    of_run = {run: group for group in groups.values() for run in group.runs}
    values: dict[tuple[str, str], dict[str, dict[int | str, list[float]]]] = {}
    diverged: dict[str, None] = {}
    unknown: dict[str, None] = {}
    for summary in catalogue.summaries():
        if (group := of_run.get(summary.name)) is None:
            continue
        direction = metric_direction(summary.metric)
        if direction is None:
            unknown[summary.metric] = None
        elif summary.diverged:
            diverged[summary.name] = None
        elif (value := summary.best(direction)) is not None:
            by_group = values.setdefault((summary.metric, summary.split), {})
            by_group.setdefault(group.name, {}).setdefault(group.runs[summary.name], []).append(
                value
            )
    if diverged:
        notes.append(f"left out of the metrics that diverged: {some_of(sorted(diverged))}")
    if unknown:
        notes.append(f"unknown whether higher is better: {some_of(sorted(unknown))}")
    results = [
        result
        for (metric, split), found in sorted(values.items())
        for result in _results(metric, split, found, groups)
    ]
    return GroupComparison(results, notes)


def _results(
    metric: str,
    split: str,
    values: Mapping[str, Mapping[int | str, Sequence[float]]],
    groups: Mapping[str, Group],
) -> Iterator[GroupResult]:
    """Compare one metric of every group that has it. values: {group: {seed: values of its runs}}"""
    # Imported here: scipy takes half a second.
    from common.experiments.statistics import compare, estimate

    direction = metric_direction(metric) or ""
    first = next(iter(groups))
    means = {
        group: {seed: math.fsum(found) / len(found) for seed, found in by_seed.items()}
        for group, by_seed in values.items()
    }
    for group in [group for group in groups if group in means]:
        comparison = reason = None
        if group != first and first in means:
            pair = (groups[name].manifests[name] for name in (first, group))
            reason = why_incomparable(metric, split, *pair)
            comparison = None if reason else compare(means[first], means[group])
        mean = estimate(list(means[group].values()))
        yield GroupResult(metric, split, direction, group, mean, comparison, reason)


def _groups(catalogue: Catalogue, names: Sequence[str]) -> tuple[dict[str, Group], list[str]]:
    """Return ({name: its group}, notes)."""
    by_hash: dict[str, Group] = {}
    for name in names:
        manifest = catalogue.manifest(name)
        group = by_hash.setdefault(config_hash(manifest), Group(name))
        if group.name != name:
            raise ExperimentError(
                f"'{group.name}' and '{name}' are seeds of one configuration", "name one of them"
            )
        group.manifests[name] = manifest
    notes = []
    for run in catalogue.overview():
        if run.config_hash not in by_hash:
            continue
        group, manifest = by_hash[run.config_hash], catalogue.manifest(run.name)
        if reason := _why_left_out(manifest, group):
            notes.append(f"left out {run.name}: {reason}")
            continue
        seed = seed_of(manifest)
        group.runs[run.name] = run.name if seed is None else seed
        group.manifests[run.name] = manifest
    notes += _changed(catalogue, names)
    groups = {group.name: group for group in by_hash.values()}
    counted = [group.manifests[run] for group in groups.values() for run in group.runs]
    seeds = [line for group in groups.values() for line in _about_seeds(group)]
    return groups, [*seeds, *describe_differences(counted), *notes]


def _why_left_out(run: Mapping[str, Any], group: Group) -> str | None:
    if run["status"] != "finished":
        return f"it is {run['status']}"
    named = group.manifests[group.name]
    if holds_quick(named) != holds_quick(run):
        return f"only one of it and {group.name} has losses of few batches as val"
    reason = other_tokens(named, run)
    return f"{reason} than {group.name}" if reason else None


def _changed(catalogue: Catalogue, names: Sequence[str]) -> list[str]:
    """A line for each run excluded from a group because a resume changed its configuration."""
    named = [catalogue.manifest(name) for name in names]
    wanted = {config_hash_of(manifest) for manifest in named if manifest["config"]}
    return [
        f"{run['name']} is in no group: a resume changed {'; '.join(changes)}"
        for run in catalogue.manifests
        if (changes := changes_of(run)) and not run["archived"] and config_hash_of(run) in wanted
    ]


def _about_seeds(group: Group) -> list[str]:
    lines = []
    seeds = {*group.runs.values()}
    if len(seeds) < len(group.runs):
        lines.append(
            f"{group.name}: {len(group.runs)} runs of {len(seeds)} seeds; the runs of a seed count once"
        )
    if unseeded := [run for run, seed in group.runs.items() if seed == run]:
        lines.append(f"no seed is recorded for {some_of(unseeded)}: each counts as a separate one")
    return lines
