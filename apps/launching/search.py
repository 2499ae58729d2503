"""Propose trials: a grid, or Optuna."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from apps.launching.attempt import is_stored
from apps.launching.space import Parameter
from apps.launching.sweep import Sweep, Trial
from common.errors import ConfigError, MissingPackageError, did_you_mean
from common.experiments.catalogue import Catalogue
from common.experiments.metrics import VAL_QUICK, MetricSummary, preferred_split

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study


@dataclass(frozen=True)
class Goal:
    """The best trial has the lowest (`min`) or the highest (`max`) value of `metric`."""

    metric: str = "loss"
    direction: str = "min"


class Search(Protocol):
    """A source of `total` trials; `ask` adds missing ones."""

    total: int

    def ask(self) -> Trial | None:
        """Add a new trial, in a sweep that others may extend too; None if all exist."""

    def close(self) -> None:
        """Report finished trials to the search."""


class GridSearch:
    """Every combination; all trials exist from the start."""

    def __init__(self, sweep: Sweep, trials: Mapping[int, Mapping[str, str]]) -> None:
        """`trials`: values of each trial by number."""
        self.total = len(trials)
        for number, values in trials.items():
            sweep.plan_trial(number, values)

    def ask(self) -> Trial | None:
        return None

    def close(self) -> None:
        pass


class OptunaSearch:
    """TPE over the parameters for the goal; the first ten trials are random.

    Every draw is a function of the seed, the trial number and the results so far, so an interrupted
    search continues with the same draws. (Bergstra et al., Algorithms for Hyper-Parameter
    Optimization, NeurIPS 2011)
    """

    def __init__(
        self,
        sweep: Sweep,
        parameters: Sequence[Parameter],
        total: int,
        goal: Goal,
        seed: int = 0,
    ) -> None:
        self.total = total
        self._sweep, self._goal, self._seed = sweep, goal, seed
        swept = [parameter for parameter in parameters if parameter.swept]
        self._distributions = {p.key: _distribution(p) for p in swept}
        with sweep.locked():
            self._study = self._load()

    def ask(self) -> Trial | None:
        import numpy as np
        from optuna.samplers import TPESampler

        with self._sweep.locked():
            self._take_note()
            if len(self._sweep.trials()) >= self.total:
                return None
            number = len(self._study.get_trials(deepcopy=False))
            # A new sampler per trial: a single one with one seed would repeat its draws after a
            # stop.
            seed = int(np.random.SeedSequence((self._seed, number)).generate_state(1)[0])
            self._study.sampler = TPESampler(seed=seed)
            drawn = self._study.ask(self._distributions)
            values = {key: _text(drawn.params[key]) for key in self._distributions}
            return self._sweep.add_trial(drawn.number, values)

    def close(self) -> None:
        with self._sweep.locked():
            self._take_note()

    def _load(self) -> Study:
        optuna = import_optuna()
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        path = self._sweep.folder / "optuna.journal"
        study: Study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(path))),
            study_name=self._sweep.name,
            direction="minimize" if self._goal.direction == "min" else "maximize",
            load_if_exists=True,
        )
        return study

    def _take_note(self) -> None:
        """Report to Optuna the results of trials that it considers running; requires the sweep lock."""
        from optuna.trial import TrialState

        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        if not running:
            return
        ours = {trial.number: trial for trial in self._sweep.trials()}
        stored = []
        for number in [each.number for each in running]:
            trial = ours.get(number)
            if trial is None:  # a launcher was killed between asking and recording
                self._study.tell(number, state=TrialState.FAIL)
                continue
            trial.reload()
            if trial.failed:
                # TPE ranks a pruned trial worst, and ignores a failed one.
                self._study.tell(number, state=TrialState.PRUNED)
            elif is_stored(trial.name):
                stored.append(trial)
        # Read after the list of finished trials, or the last values could be missing.
        summaries = summaries_of(self._goal.metric, [trial.name for trial in ours.values()])
        for trial in stored:
            summary = summaries.get(trial.name)
            value = None if summary is None else summary.best(self._goal.direction)
            if summary is None:
                raise missing_metric(self._goal.metric, trial.name)
            if summary.diverged or value is None:
                self._study.tell(trial.number, state=TrialState.PRUNED)
            else:
                self._study.tell(trial.number, value)


def import_optuna() -> Any:
    """Import optuna. Raises MissingPackageError if it is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise MissingPackageError(
            "--optuna needs the package optuna", 'install it: uv pip install -e ".[sweeps]"'
        ) from error
    return optuna


def summaries_of(
    metric: str, names: Sequence[str], *, quick_too: bool = False
) -> dict[str, MetricSummary]:
    """{experiment: its summary of `metric`}, as `judging_summaries` chooses them."""
    wanted = set(names)
    found = [summary for summary in Catalogue().summaries(metric) if summary.name in wanted]
    return judging_summaries(found, quick_too=quick_too)


def missing_metric(metric: str, name: str) -> ConfigError:
    """The error for a finished trial without a value to rank by."""
    logged = sorted({summary.metric for summary in Catalogue().summaries(name=name)})
    hint = did_you_mean(metric, logged) if logged else "it logged no metrics"
    return ConfigError(f"'{name}' has logged no '{metric}' to rank it by", hint)


def _distribution(parameter: Parameter) -> BaseDistribution:
    import_optuna()
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if parameter.bounds:
        return FloatDistribution(*parameter.bounds, log=parameter.log)
    if parameter.numbers:
        low, high = min(parameter.numbers), max(parameter.numbers)
        return IntDistribution(low, high, step=abs(parameter.numbers.step))
    return CategoricalDistribution(parameter.values)


def _text(value: object) -> str:
    return repr(value) if isinstance(value, float) else str(value)


def judging_summaries(
    summaries: Iterable[MetricSummary], *, quick_too: bool = False
) -> dict[str, MetricSummary]:
    """{run: summary} of one metric on the main split of all runs. `quick_too`: if that is `val`,
    runs without a value there count with the one on `val_quick`."""
    found = list(summaries)
    if not found:
        return {}
    split = preferred_split(summary.split for summary in found)
    splits = [VAL_QUICK, split] if quick_too and split == "val" else [split]
    return {s.name: s for split in splits for s in found if s.split == split}
