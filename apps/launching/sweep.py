"""The folder of a sweep: what is swept, and a record of every trial."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from apps.launching.command import Command
from apps.launching.space import Parameter
from common.errors import ConfigError, ExperimentError
from common.experiments import store
from common.experiments.conditions import diff_configs, diff_flat
from common.experiments.names import exists
from common.utils.file_locks import file_lock
from common.utils.files import read_json, write_json_atomic
from common.utils.manifest import now
from common.utils.paths import REPOSITORY_ROOT, folder_of, get_assets_dir

_LONGEST_NAME = 110  # what a trial appends has to fit into the name of an experiment


def get_sweeps_dir() -> Path:
    return get_assets_dir() / "outputs" / "sweeps"


@dataclass(frozen=True)
class Definition:
    """What makes two sweeps the same: their trials can be compared with one another."""

    script: str
    parameters: dict[str, str]  # as typed, fixed ones included
    search: dict[str, Any]  # {"kind": "grid"}, or all that an Optuna search depends on
    nproc: int | None
    config: dict[str, Any]  # as resolved for the first values, so that an edited file is noticed


@dataclass
class Trial:
    """One trial: what it was given, and whether it was ever started or given up."""

    sweep: Sweep
    number: int
    values: dict[str, str]
    started: str | None = None  # when its experiment was begun, ISO 8601
    failed: str | None = None  # its own error, which another attempt would only repeat

    @property
    def name(self) -> str:
        """Of its experiment."""
        return f"{self.sweep.name}_{self.number:03d}"

    @property
    def log_path(self) -> Path:
        return self.sweep.folder / "logs" / f"{self.number:03d}.log"

    @property
    def lock_path(self) -> Path:
        return self._record.with_suffix(".lock")

    @property
    def job_path(self) -> Path:
        return self._record.with_suffix(".job")

    @property
    def _record(self) -> Path:
        return self.sweep.folder / "trials" / f"{self.number:03d}.json"

    def save(self) -> None:
        """Only whoever holds the lock of the trial, or has just made it, may write."""
        record = {key: getattr(self, key) for key in ("number", "values", "started", "failed")}
        write_json_atomic(self._record, record)

    def reload(self) -> None:
        """Take up what another process has written, if any has."""
        if not self._record.exists():
            return
        record = read_json(self._record, ExperimentError, f"is {self.sweep.folder} damaged?")
        self.started, self.failed = record["started"], record["failed"]

    def check_name_is_ours(self) -> None:
        """Raises ExperimentError when another experiment has the name of this trial."""
        if not exists(self.name):
            return
        self.reload()  # another launcher may have begun it in the meantime
        if self.started is None:
            raise ExperimentError(
                f"an experiment named '{self.name}' exists that is not of this sweep",
                "name the sweep otherwise: --sweep NAME",
            )

    def describe(self) -> str:
        return " ".join(f"{key}={short(value)}" for key, value in self.values.items())


def short(value: str) -> str:
    """For people: a number of many digits, as a search draws it, with six."""
    if len(value) <= 12:
        return value
    try:
        return f"{float(value):.6g}"
    except ValueError:
        return value


@dataclass
class Sweep:
    """Made by `open_sweep`."""

    name: str
    folder: Path
    _trials: dict[int, Trial] = field(default_factory=dict)

    @property
    def tag(self) -> str:
        """Of all its experiments."""
        return f"sweep:{self.name}"

    @property
    def auto_path(self) -> Path:
        """What precision and compile are in all trials that leave them `auto`: the first one measures."""
        return self.folder / "auto.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """While trials are added: two launchers never add the same one."""
        with file_lock(self.folder / ".lock"):
            yield

    def trials(self) -> list[Trial]:
        """Those planned here and added by any launcher, in order. The same object for a trial at every call."""
        for path in (self.folder / "trials").glob("*.json"):
            if path.stem.isdecimal() and int(path.stem) not in self._trials:
                record = read_json(path, ExperimentError, f"is {self.folder} damaged?")
                self._trials[record["number"]] = Trial(self, **record)
        return [self._trials[number] for number in sorted(self._trials)]

    def plan_trial(self, number: int, values: Mapping[str, str]) -> Trial:
        """One that every launcher plans alike: its record is written when it is started.

        Raises ExperimentError where its name is taken.
        """
        trial = self._trials.setdefault(number, Trial(self, number, dict(values)))
        trial.reload()
        trial.check_name_is_ours()
        return trial

    def add_trial(self, number: int, values: Mapping[str, str]) -> Trial:
        """One that is written down at once, for others to see. To be called while the sweep is locked."""
        trial = self.plan_trial(number, values)
        if trial.values != values:
            raise ExperimentError(
                f"the search draws trial {number} of '{self.name}', which is there already",
                f"restore {self.folder / 'optuna.journal'}, or begin anew: --sweep NAME",
            )
        trial.save()
        return trial


def open_sweep(name: str, definition: Definition) -> Sweep:
    """Begin the sweep `name`, or go on with it.

    Raises ConfigError with what differs when the name is that of a sweep of something else.
    """
    if not store.is_name(name) or len(name) > _LONGEST_NAME:
        raise ConfigError(
            f"'{name}' cannot name a sweep",
            f"use letters, digits, '.', '_' and '-' (at most {_LONGEST_NAME})",
        )
    sweep = Sweep(name, get_sweeps_dir() / name)
    for part in ("trials", "logs"):
        (sweep.folder / part).mkdir(parents=True, exist_ok=True)
    path = sweep.folder / "sweep.json"
    with sweep.locked():
        if path.exists():
            _check_same(name, read_json(path, ExperimentError), asdict(definition))
        else:
            write_json_atomic(path, {"created": now(), **asdict(definition)})
    return sweep


def stored_definition(name: str) -> Mapping[str, Any] | None:
    """sweep.json of an earlier sweep `name`, or None."""
    path = folder_of(get_sweeps_dir(), name) / "sweep.json"
    return read_json(path, ExperimentError) if path.exists() else None


def in_stored_order(name: str, parameters: Sequence[Parameter]) -> list[Parameter]:
    """`parameters` in the order of the earlier sweep, which numbered its trials by it."""
    stored = stored_definition(name)
    order = list(stored["parameters"]) if stored else []
    return sorted(parameters, key=lambda p: order.index(p.key) if p.key in order else len(order))


def derived_name(command: Command, parameters: Sequence[Parameter]) -> str:
    """`quickstart_lr_seed`: the configuration, and what is swept."""
    stem = (
        Path(command.config).stem if command.config else Path(command.script).resolve().parent.name
    )
    parts = [stem, *(p.key.rpartition(".")[2] for p in parameters if p.swept)]
    return (
        re.sub(r"[^A-Za-z0-9._-]+", "_", "_".join(parts)).lstrip("._-")[:_LONGEST_NAME] or "sweep"
    )


def portable_path(path: str) -> str:
    """Relative to the repository where it is inside, so that a moved repository is the same one."""
    absolute = Path(path).resolve()
    inside = absolute.is_relative_to(REPOSITORY_ROOT)
    return str(absolute.relative_to(REPOSITORY_ROOT) if inside else absolute)


def _check_same(name: str, before: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    # The keys of parameters are dotted already.
    typed = diff_flat([before.get("parameters") or {}, wanted["parameters"]])
    rest = [
        {key: facts.get(key) for key in wanted if key != "parameters"} for facts in (before, wanted)
    ]
    told = {f"parameters.{key}": values for key, values in typed.items()}
    # A parameter shows in the configuration too: told once.
    different = diff_configs(rest).items()
    told |= {k: values for k, values in different if k.removeprefix("config.") not in typed}
    if told:
        changes = [f"{key}: {_shown(old)} -> {_shown(new)}" for key, (old, new) in told.items()]
        raise ConfigError(
            f"the sweep '{name}' is of something else ({'; '.join(changes)})",
            f"name this one otherwise: --sweep {_free_name(name)}",
        )


def _shown(value: object) -> str:
    return "absent" if value is None else str(value)


def _free_name(name: str) -> str:
    number = 2
    while (get_sweeps_dir() / f"{name}_{number}").exists():
        number += 1
    return f"{name}_{number}"
