"""Run a training or a sweep, on this machine or on SLURM. The same command again continues it."""

from __future__ import annotations

import argparse
import shlex
import sys
from typing import TYPE_CHECKING

from common.errors import ConfigError, TrainingError, exit_on_error

if TYPE_CHECKING:
    from apps.launching.command import Command
    from apps.launching.launcher import Launcher
    from apps.launching.plan import Plan
    from apps.launching.runner import Runner
    from apps.launching.sweep import Sweep

EXAMPLES = """examples:
  python tools/launch.py projects/baseline/train.py --config configs/quickstart.yaml \\
      optimizer.lr=1e-3,3e-4 "seed=range(5)"
  python tools/launch.py projects/baseline/train.py --config configs/quickstart.yaml --parallel 4 \\
      --optuna 20 --minimize loss "optimizer.lr=loguniform(1e-4,1e-2)" "model.num_layers=choice(2,4)"
  python tools/launch.py projects/baseline/train.py --config configs/quickstart.yaml --slurm \\
      --partition gpu --gpus 1 --hours 4 optimizer.lr=1e-3,3e-4

A comma makes a list, \\, is a comma that does not ('data.path=a\\,b.txt'); range(b), range(a,b) and range(a,b,step)
count as Python's do; choice(...) lists values that hold commas. uniform(a,b) and loguniform(a,b) are for
--optuna. A value that holds brackets or quotes is otherwise one value. Values that belong together are
sections: "model=choice({hidden_size: 64, num_heads: 2},{hidden_size: 128, num_heads: 4})". Quote what
your shell would read: (, ), [, ], {, }, \\ and ".

All configurations are validated before the first trial starts. If precision or compile are auto, the
first trial measures them for all. Finished trials are not repeated, dead ones are resumed, running
ones are left alone, also if several launchers run the same sweep. Ctrl-C lets the trials save, then exits."""

_NEED = {  # options that require another one
    "slurm": ("partition", "account", "hours", "cpus", "memory_gb", "sbatch", "detach"),
    "optuna": ("search_seed",),
}


def main() -> None:
    parser = _parser()
    arguments = parser.parse_intermixed_args()
    given = {name for name, v in vars(arguments).items() if v not in (None, False, [])}
    for needed, options in _NEED.items():
        for option in options:
            if option in given and needed not in given:
                parser.error(f"--{option.replace('_', '-')} requires --{needed}")
    for option in ("parallel", "nproc", "optuna", "hours", "cpus", "memory_gb"):
        value = getattr(arguments, option)
        if value is not None and value <= 0:
            parser.error(f"--{option.replace('_', '-')} must be more than 0, got {value:g}")
    for option in ("retries", "gpus", "search_seed"):
        value = getattr(arguments, option)
        if value is not None and value < 0:
            parser.error(f"--{option.replace('_', '-')} cannot be negative, got {value}")
    if "optuna" in given and given & {"retry_failed", "detach"}:
        parser.error(
            "--optuna cannot be combined with --retry-failed or --detach: it needs every result"
        )
    if arguments.gpus and arguments.gpus != (arguments.nproc or 1):
        parser.error(
            f"--gpus {arguments.gpus} requires --nproc {arguments.gpus}: one GPU per process"
        )
    with exit_on_error():
        _launch(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        usage="launch.py SCRIPT [--config FILE] [options] [key.path=values ...]",
    )
    add = parser.add_argument
    add("script", metavar="SCRIPT", help="train.py of a project")
    add("overrides", nargs="*", metavar="key.path=values", help="overrides and swept values")
    add("--config", metavar="FILE", help="configuration of the script")
    add(
        "--sweep", metavar="NAME", help="trials are NAME_000, ... (default: from the configuration)"
    )
    add("--parallel", type=int, metavar="N", help="parallel trials (default 1; 16 on SLURM)")
    add("--nproc", type=int, metavar="N", help="processes per trial, with torchrun")
    add("--gpus", type=int, metavar="N", help="GPUs per trial (default: all; none on SLURM)")
    add(
        "--retries",
        type=int,
        default=2,
        metavar="N",
        help="retries of a trial that dies (default 2)",
    )
    add("--retry-failed", action="store_true", help="also retry trials that ended with an error")
    add("--dry-run", action="store_true", help="validate and print the commands, run nothing")
    goal = parser.add_argument_group("goal").add_mutually_exclusive_group()
    goal.add_argument("--minimize", metavar="METRIC", help="(default: loss)")
    goal.add_argument("--maximize", metavar="METRIC")
    add = parser.add_argument_group("search").add_argument
    add("--optuna", type=int, metavar="N", help="search with N trials by TPE, instead of a grid")
    add("--search-seed", type=int, metavar="N", help="seed of the search (default 0)")
    add = parser.add_argument_group("SLURM").add_argument
    add("--slurm", action="store_true", help="run each trial as a SLURM job")
    add(
        "--hours",
        type=float,
        metavar="H",
        help="time limit of a job, which then requeues itself (default 4)",
    )
    add("--partition", metavar="NAME")
    add("--account", metavar="NAME")
    add("--cpus", type=int, metavar="N", help="CPUs per trial")
    add("--memory-gb", type=float, metavar="GB", help="memory per trial")
    add("--sbatch", action="append", default=[], metavar="KEY=VALUE", help="any option of sbatch")
    add(
        "--detach",
        action="store_true",
        help="submit all and exit; run the same command to watch them",
    )
    return parser


def _launch(arguments: argparse.Namespace) -> None:
    from apps.launching.launcher import Launcher
    from apps.launching.plan import make_plan
    from apps.launching.search import Goal
    from apps.launching.view import View

    lowest = Goal(arguments.minimize or "loss", "min")
    plan = make_plan(
        arguments.script,
        arguments.overrides,
        config=arguments.config,
        name=arguments.sweep,
        nproc=arguments.nproc,
        goal=Goal(arguments.maximize, "max") if arguments.maximize else lowest,
        trials=arguments.optuna,
        search_seed=arguments.search_seed or 0,
    )
    if plan.repeated:
        count = len(plan.grid) + plan.repeated
        print(
            f"skipped {plan.repeated} of {count} combinations, which are duplicates",
            file=sys.stderr,
        )
    if arguments.dry_run:
        print("\n".join(plan.commands()))
        return
    runner = _runner(arguments, plan.command)
    sweep, search = plan.open()
    if arguments.detach:
        runner.parallel = search.total
    launcher = Launcher(
        sweep,
        search,
        runner,
        View(sweep, search.total, plan.goal),
        retries=arguments.retries,
        retry_failed=arguments.retry_failed,
        detach=arguments.detach,
        resume_command=f"python {shlex.join(sys.argv)}",
    )
    launcher.run()
    if arguments.detach:
        print(f"submitted; to watch them: python {shlex.join(_without_detach())}")
    else:
        _report(plan, sweep, launcher)


def _runner(arguments: argparse.Namespace, command: Command) -> Runner:
    if not arguments.slurm:
        from apps.launching.local import LocalRunner

        return LocalRunner(command, arguments.parallel or 1, arguments.gpus)
    from apps.launching.slurm import SlurmOptions, SlurmRunner

    options = SlurmOptions(
        hours=arguments.hours or 4.0,
        partition=arguments.partition,
        account=arguments.account,
        gpus=arguments.gpus,
        cpus=arguments.cpus,
        memory_gb=arguments.memory_gb,
        extra=dict(_pair(text) for text in arguments.sbatch),
    )
    return SlurmRunner(command, options, arguments.parallel or 16)


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise ConfigError(f"--sbatch {text}: expected KEY=VALUE", "such as --sbatch qos=high")
    return key.lstrip("-"), value


def _without_detach() -> list[str]:
    return [argument for argument in sys.argv if argument != "--detach"]


def _report(plan: Plan, sweep: Sweep, launcher: Launcher) -> None:
    from apps.launching.report import agreed_auto, look_further, ranking, unfinished
    from apps.launching.search import missing_metric
    from common.utils.paths import display_path
    from common.utils.tables import format_rows

    report = ranking(sweep.trials(), plan.goal)
    print(format_rows(report.columns, report.rows, "table"))
    reasons = unfinished(sweep.trials(), launcher.given_up)
    for name, reason in reasons.items():
        print(f"{name}: {reason}")
    print(f"\nsweep  {display_path(sweep.folder)}  (definition, a log per trial)")
    if auto := agreed_auto(sweep):
        print(f"auto   {auto}")
    names = [str(row[1]) for row in report.rows if row[2] is not None]
    for number, command in enumerate(look_further(sweep, names, [p.key for p in plan.swept])):
        print(f"{'next' if number == 0 else '':6} {command}")
    finished = [str(row[1]) for row in report.rows if row[5] == "finished"]
    if finished and not names:
        raise missing_metric(plan.goal.metric, finished[0])
    if reasons:
        raise TrainingError(
            f"{len(reasons)} of {len(report.rows)} trials did not finish",
            "fix the errors in their logs, then repeat the command (with --retry-failed for failed trials)",
        )


if __name__ == "__main__":
    main()
