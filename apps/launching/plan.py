"""Plan a launch and validate it before anything is started or written."""

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
    """A sweep from its command line, created by `make_plan`. `trials` is None for a grid."""

    name: str
    command: Command
    swept: list[Parameter]
    grid: dict[int, dict[str, str]]  # trial -> its values; empty for a search
    repeated: int  # duplicates from different spellings of a value
    goal: Goal
    trials: int | None
    search_seed: int
    definition: Definition

    def commands(self) -> list[str]:
        """The command line of every trial; for a search, with the distributions."""
        combinations = [*self.grid.values()] or [{p.key: p.text for p in self.swept}]
        return [
            shlex.join(self.command.arguments(values, python="python")) for values in combinations
        ]

    def open(self) -> tuple[Sweep, Search]:
        """Start or continue the sweep. Raises ConfigError if its name belongs to another one."""
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
    """Plan a grid over the `key.path=values` arguments, or an Optuna search with `trials` trials.

    Raises ConfigError for arguments that cannot be swept or that the script rejects, and
    MissingPackageError for a search without Optuna.
    """
    goal = goal or Goal()
    parameters = parse_space(arguments)
    search: dict[str, Any] = {"kind": "grid"}
    if trials is not None:
        if not any(parameter.swept for parameter in parameters):
            raise ConfigError("nothing to search", 'add "optimizer.lr=loguniform(1e-4,1e-2)"')
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
    """Indices of distinct configurations: 1e-3 and 0.001 are one value."""
    first: dict[str, int] = {}
    for number, config in enumerate(configs):
        first.setdefault(json.dumps(config, sort_keys=True), number)
    return list(first.values())


def _samples(swept: Sequence[Parameter]) -> list[dict[str, str]]:
    """Test trials of a search: every value of a list, and both ends of a distribution."""
    example = {p.key: p.example for p in swept}
    ends = {p.key: tuple(map(repr, p.bounds)) if p.bounds else p.values for p in swept}
    return [example, *(example | {key: value} for key in ends for value in ends[key])]
