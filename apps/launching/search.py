"""Where the next trial comes from: a grid, or Optuna."""

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
    """`total` trials, of which `ask` adds those that are not there yet."""

    total: int

    def ask(self) -> Trial | None:
        """A new trial, in a sweep that others may add to as well; None when all are there."""

    def close(self) -> None:
        """Take note of the last results."""


class GridSearch:
    """Every combination; the trials are there from the start."""

    def __init__(self, sweep: Sweep, trials: Mapping[int, Mapping[str, str]]) -> None:
        """`trials`: what each is given, by its number."""
        self.total = len(trials)
        for number, values in trials.items():
            sweep.plan_trial(number, values)

    def ask(self) -> Trial | None:
        return None

    def close(self) -> None:
        pass


class OptunaSearch:
    """TPE over the parameters, towards the goal; the first ten trials are drawn at random.

    Every draw is a function of the seed, the number of the trial and the results so far: a search
    that was stopped and goes on draws what it would have drawn.
    (Bergstra et al., Algorithms for Hyper-Parameter Optimization, NeurIPS 2011)
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
            # Anew for every trial: one sampler with one seed would repeat its draws after a stop.
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
        """Tell Optuna how the trials ended that it takes for running. While the sweep is locked."""
        from optuna.trial import TrialState

        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        if not running:
            return
        ours = {trial.number: trial for trial in self._sweep.trials()}
        stored = []
        for number in [each.number for each in running]:
            trial = ours.get(number)
            if trial is None:  # a launcher was killed between asking and writing it down
                self._study.tell(number, state=TrialState.FAIL)
                continue
            trial.reload()
            if trial.failed:
                # TPE holds a pruned trial for worse than any other, and forgets a failed one.
                self._study.tell(number, state=TrialState.PRUNED)
            elif is_stored(trial.name):
                stored.append(trial)
        # Read after it is known who has finished, or the last values could be missing.
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
    """The package. Raises MissingPackageError where it is not installed."""
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
    """What to raise when a finished trial has no value to rank it by."""
    logged = sorted({summary.metric for summary in Catalogue().summaries(name=name)})
    hint = did_you_mean(metric, logged) if logged else "it has logged nothing"
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
    """{run: its summary} of one metric, on the split that judges all the runs. `quick_too`: where that
    is `val`, a run that has no value there yet is in with the one on `val_quick`."""
    found = list(summaries)
    if not found:
        return {}
    split = preferred_split(summary.split for summary in found)
    splits = [VAL_QUICK, split] if quick_too and split == "val" else [split]
    return {s.name: s for split in splits for s in found if s.split == split}
