"""Runs beside each other: which configuration keys differ, and groups of runs that differ in the seed alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from common.errors import ExperimentError
from common.utils.experiment_storage.catalogue import Catalogue
from common.utils.experiment_storage.metrics import metric_direction

if TYPE_CHECKING:
    from common.utils.experiment_storage.statistics import Comparison, Estimate

_ABSENT = object()


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"model": {"num_layers": 4}} -> {"model.num_layers": 4}"""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def diff_configs(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The keys on which the configurations differ, with the value of each (None where it is absent)."""
    flat = [flatten(config) for config in configs]
    different = {}
    for key in dict.fromkeys(key for config in flat for key in config):
        values = [config.get(key, _ABSENT) for config in flat]
        if any(value is _ABSENT or value != values[0] for value in values):
            different[key] = [None if value is _ABSENT else value for value in values]
    return different


def config_hash(manifest: Mapping[str, Any]) -> str:
    """Equal for the runs of one project whose configurations differ in `seed` alone.

    A run without a configuration is equal to itself only.
    """
    config = manifest.get("config")
    if isinstance(config, Mapping) and config:
        config = {key: value for key, value in config.items() if key != "seed"}
        identity = [manifest["project"], config]
    else:
        identity = [manifest["name"]]
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class GroupResult:
    """One metric of one group of seeds; `comparison` is with the first group (None for the first)."""

    metric: str
    split: str
    direction: str
    group: str
    estimate: Estimate
    comparison: Comparison | None


def compare_groups(catalogue: Catalogue, names: Sequence[str]) -> list[GroupResult]:
    """Compare the configurations of `names`, each by all its finished runs that have not diverged.

    A run counts with its best value of every metric of which it is known whether more is better.
    Raises ExperimentError for an unknown name and for two names of one configuration.
    """
    # Imported here, because scipy takes half a second.
    from common.utils.experiment_storage.statistics import compare, estimate

    groups = _groups(catalogue, names)
    values: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
    for summary in catalogue.summaries():
        direction = metric_direction(summary.metric)
        if direction is None or summary.name not in groups or summary.diverged:
            continue
        group, key = groups[summary.name]
        if (value := summary.best(direction)) is not None:
            by_group = values.setdefault((summary.metric, summary.split), {})
            by_group.setdefault(group, {})[key] = value
    results = []
    for (metric, split), found in sorted(values.items()):
        base = found.get(names[0])
        for group in [name for name in names if name in found]:
            comparison = None
            if base is not None and group != names[0]:
                comparison = compare(base, found[group])
            results.append(
                GroupResult(
                    metric,
                    split,
                    metric_direction(metric) or "",
                    group,
                    estimate(list(found[group].values())),
                    comparison,
                )
            )
    return results


def _groups(catalogue: Catalogue, names: Sequence[str]) -> dict[str, tuple[str, int]]:
    """{run: (group it belongs to, key that pairs it)}; the key is the seed where it is unique."""
    by_hash: dict[str, str] = {}
    for name in names:
        identity = config_hash(catalogue.manifest(name))
        if (other := by_hash.setdefault(identity, name)) != name:
            raise ExperimentError(
                f"'{other}' and '{name}' are seeds of one configuration", "name one of them"
            )
    groups: dict[str, tuple[str, int]] = {}
    taken: set[tuple[str, int]] = set()
    for index, run in enumerate(catalogue.overview()):
        group = by_hash.get(run.config_hash)
        if group is None or run.status != "finished":
            continue
        seed = catalogue.manifest(run.name)["seed"]
        repeated = seed is None or (group, seed) in taken
        entry = (group, -1 - index if repeated else seed)  # what cannot be paired stands alone
        taken.add(entry)
        groups[run.name] = entry
    return groups
