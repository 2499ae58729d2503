"""What is to be launched, checked before anything is started or written."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from apps.launching.command import Command
from apps.launching.search import Goal, GridSearch, OptunaSearch, Search, import_optuna
from apps.launching.space import Parameter, grid, parse_space
from apps.launching.sweep import (
    Definition,
    Sweep,
    derived_name,
    in_stored_order,
    open_sweep,
    portable_path,
)
from common.errors import ConfigError


@dataclass(frozen=True)
class Plan:
    """A sweep as its command line says it; made by `make_plan`. `trials` is None for a grid."""

    name: str
    command: Command
    swept: list[Parameter]
    grid: dict[int, dict[str, str]]  # trial -> what it is given; of a search: empty
    repeated: int  # combinations of the grid that another spelling of a value repeats
    goal: Goal
    trials: int | None
    search_seed: int
    definition: Definition

    def commands(self) -> list[str]:
        """The command line of every trial; of a search, with the distributions in it."""
        combinations = [*self.grid.values()] or [{p.key: p.text for p in self.swept}]
        return [
            shlex.join(self.command.arguments(values, python="python")) for values in combinations
        ]

    def open(self) -> tuple[Sweep, Search]:
        """Begin the sweep, or go on with it. Raises ConfigError when its name is that of another."""
        sweep = open_sweep(self.name, self.definition)
        if self.trials is None:
            return sweep, GridSearch(sweep, self.grid)
        return sweep, OptunaSearch(sweep, self.swept, self.trials, self.goal, self.search_seed)


def make_plan(
    script: str,
    arguments: Sequence[str],
    *,
    config: str | None = None,
    name: str | None = None,
    nproc: int | None = None,
    goal: Goal | None = None,
    trials: int | None = None,
    search_seed: int = 0,
) -> Plan:
    """A grid over the `key.path=values` arguments, or with `trials` an Optuna search of so many.

    Raises ConfigError for what cannot be swept and for what the script would not take, and
    MissingPackageError for a search without Optuna.
    """
    goal = goal or Goal()
    parameters = parse_space(arguments)
    search: dict[str, Any] = {"kind": "grid"}
    if trials is not None:
        if not any(parameter.swept for parameter in parameters):
            raise ConfigError(
                "there is nothing to search", 'add "optimizer.lr=loguniform(1e-4,1e-2)"'
            )
        import_optuna()
        search = {"kind": "optuna", "seed": search_seed, **asdict(goal)}
    fixed = tuple(f"{p.key}={p.example}" for p in parameters if not p.swept)
    command = Command(script, config, fixed, nproc)
    name = name or derived_name(command, parameters)
    swept = [p for p in in_stored_order(name, parameters) if p.swept]
    combinations = grid(swept) if trials is None else _samples(swept)
    configs = command.resolved_configs(combinations)
    first = _first_of_each(configs)
    definition = Definition(
        script=portable_path(script),
        parameters={p.key: p.text for p in parameters},
        search=search,
        nproc=nproc,
        config=configs[0],
    )
    return Plan(
        name,
        command,
        swept,
        {number: combinations[number] for number in first} if trials is None else {},
        len(combinations) - len(first) if trials is None else 0,
        goal,
        trials,
        search_seed,
        definition,
    )


def _first_of_each(configs: Sequence[dict[str, Any]]) -> list[int]:
    """The numbers of the configurations that none before equals: 1e-3 and 0.001 are one value."""
    first: dict[str, int] = {}
    for number, config in enumerate(configs):
        first.setdefault(json.dumps(config, sort_keys=True), number)
    return list(first.values())


def _samples(swept: Sequence[Parameter]) -> list[dict[str, str]]:
    """Trials that a search could draw: every value of a list, and both ends of a distribution."""
    example = {p.key: p.example for p in swept}
    ends = {p.key: tuple(map(repr, p.bounds)) if p.bounds else p.values for p in swept}
    return [example, *(example | {key: value} for key in ends for value in ends[key])]
