"""The folder of a sweep: its definition, and a record of every trial."""

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

_LONGEST_NAME = 110  # leaves room for the trial number in an experiment name


def get_sweeps_dir() -> Path:
    return get_assets_dir() / "outputs" / "sweeps"


@dataclass(frozen=True)
class Definition:
    """The identity of a sweep: trials of equal definitions are comparable."""

    script: str
    parameters: dict[str, str]  # as typed, including fixed ones
    search: dict[str, Any]  # {"kind": "grid"}, or the settings of an Optuna search
    nproc: int | None
    config: dict[str, Any]  # resolved with the first values, to detect an edited file


@dataclass
class Trial:
    """One trial: its values, and whether it was started or given up."""

    sweep: Sweep
    number: int
    values: dict[str, str]
    started: str | None = None  # start time of its experiment, ISO 8601
    failed: str | None = None  # its error, which a retry would repeat

    @property
    def name(self) -> str:
        """The name of its experiment."""
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
        """Write the record; requires the lock of the trial, unless it was just created."""
        record = {key: getattr(self, key) for key in ("number", "values", "started", "failed")}
        write_json_atomic(self._record, record)

    def reload(self) -> None:
        """Reload the record if another process has changed it."""
        if not self._record.exists():
            return
        record = read_json(self._record, ExperimentError, f"is {self.sweep.folder} damaged?")
        self.started, self.failed = record["started"], record["failed"]

    def check_name_is_ours(self) -> None:
        """Mark as started. Raises ExperimentError if another experiment has the name of this trial."""
        if not exists(self.name):
            return
        self.reload()  # another launcher may have started it meanwhile
        if self.started is None:
            raise ExperimentError(
                f"an experiment named '{self.name}' exists outside of this sweep",
                "choose another name: --sweep NAME",
            )

    def describe(self) -> str:
        return " ".join(f"{key}={short(value)}" for key, value in self.values.items())


def short(value: str) -> str:
    """For display: long numbers, as drawn by a search, with six digits."""
    if len(value) <= 12:
        return value
    try:
        return f"{float(value):.6g}"
    except ValueError:
        return value


@dataclass
class Sweep:
    """A sweep, created by `open_sweep`."""

    name: str
    folder: Path
    _trials: dict[int, Trial] = field(default_factory=dict)

    @property
    def tag(self) -> str:
        """Tag of all its experiments."""
        return f"sweep:{self.name}"

    @property
    def auto_path(self) -> Path:
        """File with the shared precision and compile of trials with `auto`: the first trial measures."""
        return self.folder / "auto.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock for adding trials, so that two launchers never add the same one."""
        with file_lock(self.folder / ".lock"):
            yield

    def trials(self) -> list[Trial]:
        """Trials planned here and added by any launcher, in order; the same objects at every call."""
        for path in (self.folder / "trials").glob("*.json"):
            if path.stem.isdecimal() and int(path.stem) not in self._trials:
                record = read_json(path, ExperimentError, f"is {self.folder} damaged?")
                self._trials[record["number"]] = Trial(self, **record)
        return [self._trials[number] for number in sorted(self._trials)]

    def plan_trial(self, number: int, values: Mapping[str, str]) -> Trial:
        """Add a trial that every launcher plans equally; its record is written on start.

        Raises ExperimentError if its name is taken.
        """
        trial = self._trials.setdefault(number, Trial(self, number, dict(values)))
        trial.reload()
        trial.check_name_is_ours()
        return trial

    def add_trial(self, number: int, values: Mapping[str, str]) -> Trial:
        """Add a trial and write its record at once, for other launchers; requires the sweep lock."""
        trial = self.plan_trial(number, values)
        if trial.values != values:
            raise ExperimentError(
                f"the search proposes trial {number} of '{self.name}', which already exists",
                f"restore {self.folder / 'optuna.journal'}, or start a new sweep: --sweep NAME",
            )
        trial.save()
        return trial


def open_sweep(name: str, definition: Definition) -> Sweep:
    """Start or continue the sweep `name`.

    Raises ConfigError with the differences if the name belongs to a different sweep.
    """
    if not store.is_name(name) or len(name) > _LONGEST_NAME:
        raise ConfigError(
            f"'{name}' is not a valid sweep name",
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
    """`parameters` in the order of the earlier sweep, which determines trial numbers."""
    stored = stored_definition(name)
    order = list(stored["parameters"]) if stored else []
    return sorted(parameters, key=lambda p: order.index(p.key) if p.key in order else len(order))


def derived_name(command: Command, parameters: Sequence[Parameter]) -> str:
    """Default name `quickstart_lr_seed`: configuration and swept keys."""
    stem = (
        Path(command.config).stem if command.config else Path(command.script).resolve().parent.name
    )
    parts = [stem, *(p.key.rpartition(".")[2] for p in parameters if p.swept)]
    return (
        re.sub(r"[^A-Za-z0-9._-]+", "_", "_".join(parts)).lstrip("._-")[:_LONGEST_NAME] or "sweep"
    )


def portable_path(path: str) -> str:
    """Path relative to the repository if inside, so that the repository can be moved."""
    absolute = Path(path).resolve()
    inside = absolute.is_relative_to(REPOSITORY_ROOT)
    return str(absolute.relative_to(REPOSITORY_ROOT) if inside else absolute)


def _check_same(name: str, before: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    # The keys of parameters are already dotted.
    typed = diff_flat([before.get("parameters") or {}, wanted["parameters"]])
    rest = [
        {key: facts.get(key) for key in wanted if key != "parameters"} for facts in (before, wanted)
    ]
    changed = {f"parameters.{key}": values for key, values in typed.items()}
    # Parameters also appear in the configuration: report them once.
    different = diff_configs(rest).items()
    changed |= {k: values for k, values in different if k.removeprefix("config.") not in typed}
    if changed:
        changes = [f"{key}: {_shown(old)} -> {_shown(new)}" for key, (old, new) in changed.items()]
        raise ConfigError(
            f"the sweep '{name}' has a different definition ({'; '.join(changes)})",
            f"choose another name: --sweep {_free_name(name)}",
        )


def _shown(value: object) -> str:
    return "absent" if value is None else str(value)


def _free_name(name: str) -> str:
    number = 2
    while (get_sweeps_dir() / f"{name}_{number}").exists():
        number += 1
    return f"{name}_{number}"
