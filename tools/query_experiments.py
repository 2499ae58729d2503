"""Ask about every experiment: list, rank, compare, SQL."""

from __future__ import annotations

import argparse
import sys

from common.errors import exit_on_error
from common.utils.experiment_storage.catalogue import Catalogue
from common.utils.experiment_storage.metrics import metric_direction
from common.utils.tables import FORMATS, format_rows

Table = tuple[list[str], list[list[object]]]
EXAMPLES = """examples:
  python tools/query_experiments.py --list
  python tools/query_experiments.py --best perplexity --top 5
  python tools/query_experiments.py --best tokens_per_second --split train --max
  python tools/query_experiments.py --compare exp_001 exp_002
  python tools/query_experiments.py --compare exp_001 exp_007 --group
  python tools/query_experiments.py --diff exp_001 exp_007
  python tools/query_experiments.py --tag exp_001 baseline paper
  python tools/query_experiments.py --sql "SELECT experiment_name, MIN(loss) FROM experiments
                                           WHERE split = 'val' GROUP BY experiment_name"
  python tools/query_experiments.py --sql "SELECT name, config->>'$.optimizer.lr' AS lr FROM runs"

`experiments` has a row per logged step: experiment_name, step, epoch, split, time (seconds since the
start), then a column per metric. `runs` has a row per experiment: name, status, project, started,
finished, duration (seconds), config, git_commit, seed, host, parameters, tokens, tags, note."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--list", action="store_true", help="every experiment, oldest first")
    action.add_argument("--summary", action="store_true", help="the store in numbers")
    action.add_argument("--best", metavar="METRIC", help="rank by the best value of METRIC")
    action.add_argument("--compare", nargs="+", metavar="NAME", help="metrics side by side")
    action.add_argument("--diff", nargs="+", metavar="NAME", help="configuration keys that differ")
    action.add_argument("--tag", nargs="+", metavar=("NAME", "TAG"), help="add tags to NAME")
    action.add_argument("--untag", nargs="+", metavar=("NAME", "TAG"), help="take tags from NAME")
    action.add_argument("--note", nargs=2, metavar=("NAME", "TEXT"), help="write a note to NAME")
    action.add_argument("--sql", metavar="SELECT", help="SQL over `experiments` and `runs`")
    parser.add_argument("--top", type=int, default=10, metavar="N", help="of --best (default 10)")
    parser.add_argument("--split", help="of --best (default: test, else val, else train)")
    parser.add_argument(
        "--group", action="store_true", help="of --compare: all seeds of each configuration"
    )
    parser.add_argument(
        "--limit",
        type=int,
        metavar="N",
        help="of --sql: more rows are an error (default 1,000,000)",
    )
    parser.add_argument(
        "--timeout", type=float, metavar="SECONDS", help="of --sql: stop it then (default 60)"
    )
    direction = parser.add_mutually_exclusive_group()
    direction.add_argument("--max", action="store_true", help="higher is better")
    direction.add_argument("--min", action="store_true", help="lower is better")
    parser.add_argument("--format", choices=FORMATS, default="table")
    arguments = parser.parse_args()
    if arguments.top < 1:
        parser.error(f"--top must be at least 1, got {arguments.top}")
    for option in ("limit", "timeout"):
        value = getattr(arguments, option)
        if value is not None and not (value > 0 and arguments.sql is not None):
            parser.error(f"--{option} goes with --sql and must be more than 0")
    for option in ("tag", "untag"):
        if len(getattr(arguments, option) or ["", ""]) < 2:
            parser.error(f"--{option} takes the name of an experiment and at least one tag")
    if arguments.group and not arguments.compare:
        parser.error("--group goes with --compare")
    with exit_on_error():
        columns, rows = _answer(arguments)
        print(format_rows(columns, rows, arguments.format))


def _answer(arguments: argparse.Namespace) -> Table:
    if arguments.sql is not None:
        return _sql(arguments)
    if changed := arguments.tag or arguments.untag or arguments.note:
        return _annotate(arguments, changed[0])
    catalogue = Catalogue()
    for broken in catalogue.broken:
        print(f"warning: left out {broken.file}: {broken.error}", file=sys.stderr)
    for_people = arguments.format in ("table", "markdown")
    if arguments.list:
        return _list(catalogue, for_people)
    if arguments.summary:
        return _summary(catalogue)
    if arguments.diff:
        return _diff(catalogue, list(dict.fromkeys(arguments.diff)))
    if arguments.compare:
        names = list(dict.fromkeys(arguments.compare))
        return (_compare_groups if arguments.group else _compare)(catalogue, names)
    direction = "max" if arguments.max else "min" if arguments.min else None
    return _best(catalogue, arguments.best, direction, arguments.split, arguments.top)


def _sql(arguments: argparse.Namespace) -> Table:
    from common.utils.experiment_storage.sql import query_rows

    bounds = {"limit": arguments.limit, "timeout_seconds": arguments.timeout}
    return query_rows(
        arguments.sql, **{key: value for key, value in bounds.items() if value is not None}
    )


def _annotate(arguments: argparse.Namespace, name: str) -> Table:
    from common.utils.experiment_storage.annotations import annotate_experiment

    now = annotate_experiment(
        name,
        add_tags=arguments.tag[1:] if arguments.tag else (),
        remove_tags=arguments.untag[1:] if arguments.untag else (),
        note=arguments.note[1] if arguments.note else None,
    )
    return ["name", "tags", "note"], [[name, ", ".join(now.tags), now.note]]


def _list(catalogue: Catalogue, for_people: bool) -> Table:
    columns = ["name", "status", "project", "started", "duration", "parameters", "step"]
    columns += ["best_loss", "tags"]
    if for_people:
        return columns, catalogue.listing()
    rows: list[list[object]] = [
        [*run[: len(columns) - 1], ", ".join(run.tags)] for run in catalogue.overview()
    ]
    return columns, rows


def _summary(catalogue: Catalogue) -> Table:
    """One row per metric: how many runs have it, and which one is best where that is known."""
    rows: list[list[object]] = []
    for metric, split, experiments, values in catalogue.counts():
        direction = metric_direction(metric)
        best, name = None, None
        if direction is not None:
            ((_, summary),) = catalogue.best(metric, direction, split, top=1)
            best, name = summary.best(direction), summary.name
        rows.append([metric, split, experiments, values, best, name])
    statuses = [run.status for run in catalogue.overview()]
    counts = ", ".join(f"{statuses.count(s)} {s}" for s in sorted(set(statuses)))
    print(f"{len(statuses)} experiments ({counts or 'none'})", file=sys.stderr)
    return ["metric", "split", "experiments", "values", "best", "best_experiment"], rows


def _best(
    catalogue: Catalogue, metric: str, direction: str | None, split: str | None, top: int
) -> Table:
    direction = direction or metric_direction(metric)
    ranked = catalogue.best(metric, direction, split, top)
    rows: list[list[object]] = []
    for rank, (manifest, summary) in enumerate(ranked, start=1):
        status = "diverged" if summary.diverged else manifest["status"]
        value, step = summary.best(direction or "min"), summary.best_step(direction or "min")
        rows.append(
            [rank, manifest["name"], value, step, summary.split, status, manifest["project"]]
        )
    return ["rank", "name", metric, "step", "split", "status", "project"], rows


def _compare(catalogue: Catalogue, names: list[str]) -> Table:
    values: dict[tuple[str, str], dict[str, float | None]] = {}
    diverged: dict[tuple[str, str], set[str]] = {}
    for name in names:
        catalogue.manifest(name)  # raises where there is none
        for summary in catalogue.summaries(name=name):
            direction = metric_direction(summary.metric)
            value = summary.best(direction) if direction else summary.last
            values.setdefault((summary.metric, summary.split), {})[name] = value
            if summary.diverged:
                diverged.setdefault((summary.metric, summary.split), set()).add(name)
    rows: list[list[object]] = []
    for (metric, split), found in sorted(values.items()):
        direction = metric_direction(metric)
        fallen = diverged.get((metric, split), set())
        known = {n: value for n, value in found.items() if value is not None and n not in fallen}
        better = None
        if direction and len(found) > 1 and known:
            better = (min if direction == "min" else max)(known, key=lambda name: known[name])
        shown = {"min": "lowest", "max": "highest", None: "last"}[direction]
        rows.append([metric, split, shown, *(found.get(name) for name in names), better])
    return ["metric", "split", "value", *names, "better"], rows


def _diff(catalogue: Catalogue, names: list[str]) -> Table:
    from common.utils.experiment_storage.comparison import diff_configs

    configs = [catalogue.manifest(name)["config"] for name in names]
    different = diff_configs(configs)
    if not different:
        print("their configurations are the same", file=sys.stderr)
    return ["key", *names], [[key, *values] for key, values in different.items()]


def _compare_groups(catalogue: Catalogue, names: list[str]) -> Table:
    """One row per metric and configuration; from the second on also the difference from the first."""
    from common.utils.experiment_storage.comparison import compare_groups

    rows: list[list[object]] = []
    for result in compare_groups(catalogue, names):
        mean, other = result.estimate, result.comparison
        row: list[object] = [result.metric, result.split, result.group, mean.runs]
        row += [mean.mean, mean.half_width]
        if other is None:
            rows.append([*row, *[None] * 6])
            continue
        significant = other.p_value is not None and other.p_value < 0.05
        better = (other.difference < 0) == (result.direction == "min")
        verdict = ("better" if better else "worse") if significant else "not told apart"
        interval = [other.bootstrap_low, other.bootstrap_high]
        rows.append([*row, other.difference, other.p_value, *interval, other.more_runs, verdict])
    columns = ["metric", "split", "configuration", "runs", "mean", "ci95"]
    columns += ["difference", "p", "bootstrap_low", "bootstrap_high", "more_seeds", "verdict"]
    return columns, rows


if __name__ == "__main__":
    main()
