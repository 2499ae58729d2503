"""Progress of a sweep: a bar on a terminal, a line per event everywhere."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from apps.launching.attempt import FINISHED, Outcome
from apps.launching.report import ranking
from apps.launching.search import Goal, summaries_of
from apps.launching.sweep import Sweep, Trial
from common.experiments.catalogue import Overview
from common.terminal import printable


class View:
    """Progress on stderr of a sweep of `total` trials."""

    def __init__(self, sweep: Sweep, total: int, goal: Goal) -> None:
        self._sweep, self._goal = sweep, goal
        self._console = Console(stderr=True, highlight=False)
        columns = (
            TextColumn(escape(sweep.name)),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(),
        )
        self._bar = Progress(*columns, console=self._console, refresh_per_second=2)
        self._task = self._bar.add_task("", total=total, text="")
        self._interactive = sys.stderr.isatty()
        self._failed: set[int] = set()

    def __enter__(self) -> View:
        if self._interactive:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._interactive:
            self._bar.stop()

    def started(self, trial: Trial) -> None:
        self._say(f"{trial.name} started  {trial.describe()}")

    def ended(self, trial: Trial, outcome: Outcome) -> None:
        text = f"{trial.name} {outcome.kind}"
        if outcome.kind == FINISHED:
            text += self._result(trial)
        self._say(f"{text}: {outcome.reason}" if outcome.reason else text)

    def stopping(self, running: int) -> None:
        self._say(f"stopping: {running} trials save and exit")

    def show(
        self,
        overview: Mapping[str, Overview],
        *,
        finished: int,
        running: Sequence[int],
        failed: int,
        elsewhere: int,
    ) -> None:
        """Update the bar. `running` are the numbers of our own trials."""
        if not self._interactive:
            return
        trials = {trial.number: trial for trial in self._sweep.trials()}
        shown = [self._progress(trials[number], overview) for number in running[:2]]
        parts = [escape(", ".join(shown))]
        parts += [f"and {len(running) - 2} more"] if len(running) > 2 else []
        parts += [f"{elsewhere} elsewhere"] if elsewhere else []
        parts += [f"[red]{failed} failed[/red]"] if failed else []
        _, name, value, _, split, *_ = ranking(self._sweep.trials(), self._goal).rows[0]
        if isinstance(value, float):
            parts.append(escape(f"best {name} {value:.4g} ({split})"))
        text = "  ".join(part for part in parts if part)
        self._bar.update(self._task, completed=finished, text=text)

    def _progress(self, trial: Trial, overview: Mapping[str, Overview]) -> str:
        run = overview.get(trial.name)
        if run is None or run.step is None:
            return f"{trial.name} begins"
        loss = "" if run.best_loss is None else f" {run.split} loss {run.best_loss:.4g}"
        return f"{trial.name} step {run.step}{loss}"

    def _result(self, trial: Trial) -> str:
        summary = summaries_of(self._goal.metric, [trial.name]).get(trial.name)
        value = summary.best(self._goal.direction) if summary else None
        return "" if value is None else f"  {self._goal.metric} {value:.6g}"

    def _say(self, line: str) -> None:
        self._console.print(printable(line), markup=False, soft_wrap=True)
