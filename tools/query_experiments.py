"""Query and manage experiments: list, rank, compare, plot, SQL."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import ExperimentError, exit_on_error
from common.terminal import printable, show
from common.utils.tables import FORMATS, format_rows

if TYPE_CHECKING:  # each action imports only what it needs
    from common.utils.tables import Report

EXAMPLES = """examples:
  python tools/query_experiments.py --list
  python tools/query_experiments.py --best perplexity --top 5
  python tools/query_experiments.py --best tokens_per_second --split train --max
  python tools/query_experiments.py --compare exp_001 exp_002
  python tools/query_experiments.py --compare exp_001 exp_007 --group
  python tools/query_experiments.py --diff exp_001 exp_007
  python tools/query_experiments.py --plot loss exp_001 exp_007 --output loss.png
  python tools/query_experiments.py --tag exp_001 baseline paper
  python tools/query_experiments.py --rename exp_001 baseline_lr3
  python tools/query_experiments.py --import mlruns
  python tools/query_experiments.py --export results.csv exp_001 exp_007
  python tools/query_experiments.py --sql "SELECT experiment_name, MIN(loss) FROM experiments
                                           WHERE split = 'val' GROUP BY experiment_name"
  python tools/query_experiments.py --sql "SELECT name, config->>'$.optimizer.lr' AS lr FROM runs
      WHERE TRY_CAST(config->>'$.optimizer.lr' AS DOUBLE) > 1e-3 AND list_contains(tags, 'paper')"

`experiments` has a row per logged step: experiment_name, step, epoch, split, time (seconds since the
start), then a column per metric. Split val is the whole validation split, val_quick a few batches of it
(training.eval_batches): --best ranks runs without val after all others.
`runs` has a row per experiment: name, status, project, started, finished, duration (seconds), config,
git_commit, seed, host, parameters, tokens, tags, note, archived, precision, compiled, threads, device,
cpu (NULL if not recorded by an earlier version).
The same in a browser: python tools/dashboard.py"""

# Actions of each option; with another action it is an error, not ignored.
_BELONGS = {
    "top": ["best"],
    "split": ["best", "plot"],
    "max": ["best"],
    "min": ["best"],
    "group": ["compare"],
    "archived": ["list"],
    "output": ["plot"],
    "limit": ["sql"],
    "timeout": ["sql"],
    "yes": ["delete"],
}


def main() -> None:
    parser = _parser()
    arguments = parser.parse_args()
    given = {name for name, v in vars(arguments).items() if v is not None and v is not False}
    for option, actions in _BELONGS.items():
        if option in given and given.isdisjoint(actions):
            parser.error(f"--{option} requires --{' or --'.join(actions)}")
    for option in ("top", "limit", "timeout"):
        if option in given and not getattr(arguments, option) > 0:
            parser.error(f"--{option} must be more than 0, got {getattr(arguments, option):g}")
    for option in ("tag", "untag"):
        if option in given and len(getattr(arguments, option)) < 2:
            parser.error(f"--{option} takes the name of an experiment and at least one tag")
    with exit_on_error():
        for action, answer in _ACTIONS.items():
            if action in given:
                answer(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        usage="query_experiments.py ACTION [options]",
    )
    actions = parser.add_argument_group("actions, one per call")
    action = actions.add_mutually_exclusive_group(required=True)
    add = action.add_argument
    add("--list", action="store_true", help="list all experiments, oldest first")
    add("--summary", action="store_true", help="summarise the store")
    add("--best", metavar="METRIC", help="rank by the best value of METRIC")
    add("--compare", nargs="+", metavar="NAME", help="metrics side by side")
    add("--diff", nargs="+", metavar="NAME", help="configuration keys that differ")
    add("--plot", nargs="+", metavar=("METRIC", "NAME"), help="curves (of the best 5 by default)")
    add("--sql", metavar="SELECT", help="SQL over `experiments` and `runs`")
    add("--tag", nargs="+", metavar=("NAME", "TAG"), help="add tags to NAME")
    add("--untag", nargs="+", metavar=("NAME", "TAG"), help="remove tags from NAME")
    add("--note", nargs=2, metavar=("NAME", "TEXT"), help="write a note to NAME")
    add("--archive", nargs="+", metavar="NAME", help="hide from lists and rankings")
    add("--unarchive", nargs="+", metavar="NAME", help="undo --archive")
    add("--rename", nargs=2, metavar=("OLD", "NEW"), help="with its run folder, tags and note")
    add(
        "--delete",
        nargs="+",
        metavar="NAME",
        help="delete permanently, with the run folder (asks first)",
    )
    add("--check", action="store_true", help="verify every file, remove leftovers of crashes")
    add("--pack", action="store_true", help="move all finished experiments into packs")
    add("--unpack", nargs="+", metavar="NAME", help="move NAME from its pack to a separate file")
    add("--import", metavar="PATH", help="TensorBoard, W&B offline, MLflow, tables, an --export")
    add("--export", nargs="+", metavar=("FILE", "NAME"), help="to .csv (two), .json or .parquet")
    add("--sync", action="store_true", help="with the object store RESEARCH_EXPERIMENTS_URI")
    options = parser.add_argument_group("options of the actions")
    add = options.add_argument
    add("--format", choices=FORMATS, default="table", help="output format (default table)")
    add("--top", type=int, metavar="N", help="of --best (default 10)")
    add("--split", help="of --best, --plot (default: test, val or eval, val_quick, train)")
    direction = options.add_mutually_exclusive_group()
    direction.add_argument("--max", action="store_true", help="of --best: higher is better")
    direction.add_argument("--min", action="store_true", help="of --best: lower is better")
    add("--group", action="store_true", help="of --compare: all seeds of each configuration")
    add("--archived", action="store_true", help="of --list: archived ones too")
    add("--output", metavar="FILE", help="of --plot: also to this PNG, SVG or PDF")
    add("--limit", type=int, metavar="N", help="of --sql: more rows are an error (default 1000000)")
    add("--timeout", type=float, metavar="SECONDS", help="of --sql: stop it then (default 60)")
    add("--yes", action="store_true", help="of --delete: do not ask")
    return parser


def _show(arguments: argparse.Namespace, report: Report) -> None:
    _warn(report.broken)
    for line in filter(None, (report.title, *report.notes)):
        print(printable(line), file=sys.stderr)
    _print(arguments, report.columns, report.rows)


def _print(
    arguments: argparse.Namespace, columns: Sequence[str], rows: Sequence[Sequence[object]]
) -> None:
    show(format_rows(columns, rows, arguments.format))


def _warn(broken: Sequence[tuple[str, str]]) -> None:
    for file, error in broken:
        print(printable(f"warning: left out {file}: {error}"), file=sys.stderr)


def _list(arguments: argparse.Namespace) -> None:
    from apps.experiments import reports

    if arguments.format == "table":
        text, broken = reports.list_text(archived=arguments.archived)
        _warn(broken)
        print(text)
        return
    for_people = arguments.format == "markdown"
    report = reports.list_experiments(archived=arguments.archived, for_people=for_people)
    _show(arguments, report)


def _summary(arguments: argparse.Namespace) -> None:
    from apps.experiments import reports

    _show(arguments, reports.summarise_experiments())


def _best(arguments: argparse.Namespace) -> None:
    from apps.experiments import reports

    direction = "max" if arguments.max else "min" if arguments.min else None
    report = reports.best_experiments(
        arguments.best,
        direction=direction,
        split=arguments.split,
        top=arguments.top or 10,
    )
    _show(arguments, report)


def _compare(arguments: argparse.Namespace) -> None:
    from apps.experiments import reports

    compare = reports.compare_seeds if arguments.group else reports.compare_experiments
    _show(arguments, compare(arguments.compare))


def _diff(arguments: argparse.Namespace) -> None:
    from apps.experiments import reports

    _show(arguments, reports.diff_experiments(arguments.diff))


def _sql(arguments: argparse.Namespace) -> None:
    from common.experiments.sql import query_rows

    bounds = {"limit": arguments.limit, "timeout_seconds": arguments.timeout}
    given = {key: value for key, value in bounds.items() if value is not None}
    _print(arguments, *query_rows(arguments.sql, **given))


def _plot(arguments: argparse.Namespace) -> None:
    metric, *names = arguments.plot
    if not names:
        from apps.experiments.reports import best_experiments

        names = [str(row[1]) for row in best_experiments(metric, top=5).rows]
    from shutil import get_terminal_size

    from apps.experiments.terminal_curves import draw_in_terminal

    size = get_terminal_size((100, 30))
    shape = {"width": size.columns, "height": min(size.lines - 2, 30)}
    splits = [arguments.split] if arguments.split else None
    print(draw_in_terminal(names, metric, splits=splits, colours=sys.stdout.isatty(), **shape))
    if arguments.output:
        from common.visualization import plot_training_curves

        plot_training_curves(names, metric, splits=splits, output=arguments.output)
        print(f"saved {arguments.output}", file=sys.stderr)


def _annotate(arguments: argparse.Namespace) -> None:
    from common.experiments.annotate import annotate_experiment

    name = (arguments.tag or arguments.untag or arguments.note)[0]
    now = annotate_experiment(
        name,
        add_tags=arguments.tag[1:] if arguments.tag else (),
        remove_tags=arguments.untag[1:] if arguments.untag else (),
        note=arguments.note[1] if arguments.note else None,
    )
    _print(arguments, ["name", "tags", "note"], [[name, ", ".join(now.tags), now.note]])


def _archive(arguments: argparse.Namespace) -> None:
    from common.experiments.annotate import annotate_experiment
    from common.experiments.recovery import open_catalogue

    names = arguments.archive or arguments.unarchive
    catalogue = open_catalogue()
    for name in names:
        catalogue.manifest(name)  # an unknown name changes nothing
    for name in names:
        annotate_experiment(name, archived=bool(arguments.archive))
    print(f"{'archived' if arguments.archive else 'unarchived'}: {', '.join(names)}")


def _rename(arguments: argparse.Namespace) -> None:
    from apps.experiments.renaming import rename_experiment

    old, new = arguments.rename
    rename_experiment(old, new)
    print(f"renamed {old} to {new}")


def _delete(arguments: argparse.Namespace) -> None:
    from apps.experiments.deleting import check_deletable, delete_experiments, size_of

    names = list(dict.fromkeys(arguments.delete))
    check_deletable(names)
    size = sum(map(size_of, names)) / 2**20
    if not arguments.yes:
        if not sys.stdin.isatty():
            raise ExperimentError("--delete needs a terminal to ask", "add --yes")
        what = f"{', '.join(names)} with {size:,.1f} MiB of checkpoints and metrics"
        if input(f"permanently delete {what}? [y/N] ").strip().lower() not in ("y", "yes"):
            print("nothing was deleted")
            return
    delete_experiments(names)
    print(f"deleted {', '.join(names)} ({size:,.1f} MiB)")


def _check(arguments: argparse.Namespace) -> None:
    from apps.experiments.checking import check_store

    findings = check_store()
    _print(arguments, ["file", "problem", "action"], [list(f[:3]) for f in findings])
    if left := sum(not finding.mended for finding in findings):
        raise ExperimentError(f"{left} files of the store need attention", "see the table")
    print("every file of the store is intact", file=sys.stderr)


def _pack(arguments: argparse.Namespace) -> None:
    from common.experiments.packing import pack_experiments

    print(f"packed {pack_experiments()} experiments")


def _unpack(arguments: argparse.Namespace) -> None:
    from apps.experiments.deleting import unpack_experiment

    for name in arguments.unpack:
        print(unpack_experiment(name))


def _import(arguments: argparse.Namespace) -> None:
    from apps.importing import import_experiments

    report = import_experiments(Path(getattr(arguments, "import")))
    rows: list[list[object]] = [["imported", name, None] for name in report.imported]
    rows += [["skipped", run, why] for run, why in report.skipped]
    rows += [["refused", run, why] for run, why in report.refused]
    _print(arguments, ["", "experiment", "why"], rows)
    if report.refused:
        raise ExperimentError(f"{len(report.refused)} could not be imported", "see the table")


def _export(arguments: argparse.Namespace) -> None:
    from apps.experiments.exports import export_experiments

    file, *names = arguments.export
    beside = f", and their facts to {Path(file).stem}.runs.csv" if file.endswith(".csv") else ""
    print(f"wrote {export_experiments(Path(file), names)} experiments to {file}{beside}")


def _sync(arguments: argparse.Namespace) -> None:
    from apps.experiments.synchronising import sync_experiments

    done = sync_experiments()
    print(f"uploaded {len(done.uploaded)}, downloaded {len(done.downloaded)} experiments")


_ACTIONS: dict[str, Callable[[argparse.Namespace], None]] = {
    "list": _list,
    "summary": _summary,
    "best": _best,
    "compare": _compare,
    "diff": _diff,
    "plot": _plot,
    "sql": _sql,
    "tag": _annotate,
    "untag": _annotate,
    "note": _annotate,
    "archive": _archive,
    "unarchive": _archive,
    "rename": _rename,
    "delete": _delete,
    "check": _check,
    "pack": _pack,
    "unpack": _unpack,
    "import": _import,
    "export": _export,
    "sync": _sync,
}


if __name__ == "__main__":
    main()
