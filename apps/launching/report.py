"""Report on a sweep: ranking of trials, reasons of unfinished ones, further commands."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from apps.launching.search import Goal, summaries_of
from apps.launching.sweep import Sweep, Trial, short
from common.errors import ExperimentError
from common.experiments.catalogue import Catalogue
from common.experiments.metrics import preferred_split
from common.utils.files import read_json
from common.utils.paths import display_path
from common.utils.tables import Report


def ranking(trials: Sequence[Trial], goal: Goal) -> Report:
    """Rank trials by their best value like `query_experiments.py --best`; then those with a value
    on `val_quick` only, then diverged and unfinished ones, and those without a value."""
    summaries = summaries_of(goal.metric, [trial.name for trial in trials], quick_too=True)
    main_split = (
        preferred_split(summary.split for summary in summaries.values()) if summaries else None
    )
    statuses = {run.name: run.status for run in Catalogue().overview(archived=True)}
    keys = list(dict.fromkeys(key for trial in trials for key in trial.values))
    sign = 1 if goal.direction == "min" else -1
    lines: list[tuple[tuple[bool, bool, bool, float], list[object]]] = []
    for trial in trials:
        summary = summaries.get(trial.name)
        diverged = summary is not None and summary.diverged
        value = summary.best(goal.direction) if summary else None
        status = "failed" if trial.failed else statuses.get(trial.name, "not started")
        status = "diverged" if diverged and status == "finished" else status
        whole = status in ("finished", "running")
        quick = summary is not None and summary.split != main_split
        order = (value is None, not whole, quick, 0.0 if value is None else sign * value)
        row: list[object] = [trial.name, value]
        row += [summary.best_step(goal.direction), summary.split] if summary else [None, None]
        row += [status, *(short(trial.values.get(key, "")) for key in keys)]
        lines.append((order, row))
    lines.sort(key=lambda line: line[0])
    rows: list[list[object]] = [[rank, *row] for rank, (_, row) in enumerate(lines, start=1)]
    columns = ["rank", "name", goal.metric, "step", "split", "status", *keys]
    return Report(columns, rows)


def unfinished(trials: Sequence[Trial], given_up: Mapping[int, str]) -> dict[str, str]:
    """{trial: reason it is not finished, and its log}"""
    reasons = {}
    for trial in trials:
        reason = trial.failed or given_up.get(trial.number)
        if reason is not None:
            reasons[trial.name] = f"{reason}  ({display_path(trial.log_path)})"
    return reasons


def look_further(sweep: Sweep, names: Sequence[str], keys: Sequence[str]) -> list[str]:
    """Commands for further analysis of the trials `names` (best first) and the swept keys."""
    tool = "python tools/query_experiments.py"
    values = "".join(f", config->>'$.{key}' AS {re.sub(r'[^A-Za-z0-9]', '_', key)}" for key in keys)
    where = f"list_contains(tags, '{sweep.tag}')"
    commands = [f'{tool} --sql "SELECT name, status{values} FROM runs WHERE {where} ORDER BY name"']
    best = _best_of_groups(sweep, names)
    if len(best) > 1:
        grouped = " --group" if "seed" in keys else ""
        commands.insert(0, f"{tool} --compare {best[0]} {best[1]}{grouped}")
    return commands


def _best_of_groups(sweep: Sweep, names: Sequence[str]) -> list[str]:
    """The first of `names` for each configuration, ignoring seeds."""
    values = {trial.name: trial.values for trial in sweep.trials()}
    first: dict[tuple[tuple[str, str], ...], str] = {}
    for name in names:
        others = tuple((key, value) for key, value in values[name].items() if key != "seed")
        first.setdefault(others, name)
    return list(first.values())


def agreed_auto(sweep: Sweep) -> str:
    """`precision bf32, compile false (measured on host)`: shared choices for `auto`, or empty."""
    if not sweep.auto_path.exists():
        return ""
    agreed = read_json(sweep.auto_path, ExperimentError)
    parts = [
        f"{key} {str(agreed[key]).lower()}" for key in ("precision", "compile") if key in agreed
    ]
    return (
        f"{', '.join(parts)} in all trials (measured by the first, on {agreed['measured']['host']})"
    )
