"""Command line of reproductions: run, print the paper's numbers beside ours, plot."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.reproduction.table import PaperTable, format_tables
from common.errors import Interrupted, exit_on_error
from common.utils.arguments import positive_int
from common.utils.paths import get_assets_dir
from common.utils.tables import FORMATS

if TYPE_CHECKING:  # they import torch and matplotlib
    from matplotlib.figure import Figure

    from apps.reproduction.runs import PaperRun, Planned, Results, Train

Setting = Callable[[str, bool], tuple[Mapping[str, Any], int]]
Report = Callable[["Planned", Mapping[str, "Results"], bool], tuple[Sequence[PaperTable], "Figure"]]


def reproduce(
    description: str,
    paper: str,
    variants: Sequence[str],
    setting: Setting,
    train: Train,
    report: Report,
    *,
    reduced: Sequence[str] | None = None,
) -> None:
    """The `main` of a reproduce.py.

    Args:
        variants: names of variants; `--only` selects among them.
        setting: maps (variant, full) to its configuration and number of seeds.
        train: see `run_once`.
        report: maps (runs of each variant, results, full) to the tables and the figure.
        reduced: default variants without --full; None: all.
    """
    arguments = parse_arguments(description, paper, variants, reduced)
    with exit_on_error(), _same_command_goes_on():
        from apps.reproduction.figures import check_figure, save_figure
        from apps.reproduction.runs import PaperRun, run_all

        check_figure(arguments.figure)
        planned: dict[str, list[PaperRun]] = {}
        for variant in arguments.only:
            config, seeds = setting(variant, arguments.full)
            numbers = range(arguments.seeds or seeds)
            planned[variant] = [PaperRun(paper, variant, config, seed) for seed in numbers]
        runs = [run for group in planned.values() for run in group]
        results = run_all(runs, train, arguments.jobs, Progress(len(runs)))
        tables, figure = report(planned, results, arguments.full)
        print(format_tables(tables, arguments.format))
        save_figure(figure, arguments.figure)
        print(f"figure  {arguments.figure}", file=sys.stderr)


def parse_arguments(
    description: str, paper: str, variants: Sequence[str], reduced: Sequence[str] | None = None
) -> argparse.Namespace:
    """`full`, `seeds` (None: the setting's), `only` (in the order of `variants`), `jobs`, `format` and `figure`."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--full", action="store_true", help="the paper's own setting instead of the reduced one")
    add("--seeds", type=positive_int, help="number of seeds of each (default: as stated above)")
    add("--only", nargs="+", choices=variants, metavar="VARIANT", help=f"of {', '.join(variants)}")
    add("--jobs", type=positive_int, default=os.cpu_count() or 1, help="number of parallel runs")
    add("--format", choices=FORMATS, default="table")
    figure = get_assets_dir() / "outputs" / "figures" / f"{paper}.png"
    add("--figure", type=Path, default=figure, metavar="FILE", help=f"default: {figure}")
    arguments = parser.parse_args()
    default = variants if arguments.full or reduced is None else reduced
    arguments.only = [name for name in variants if name in (arguments.only or default)]
    return arguments


@contextmanager
def _same_command_goes_on() -> Iterator[None]:
    """End everything on Ctrl-C and SIGTERM, with a message about this command, not train.py."""
    from apps.reproduction.signals import sigterm_interrupts

    try:
        with sigterm_interrupts():
            yield
    except KeyboardInterrupt as interrupt:
        number = interrupt.exit_code - 128 if isinstance(interrupt, Interrupted) else signal.SIGINT
        message = "interrupted; finished runs are kept, and the same command continues"
        raise Interrupted(message, number) from None


class Progress:
    """Prints a line on stderr for every finished run."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self.started = time.monotonic()

    def __call__(self, run: PaperRun, results: Results) -> None:
        self.done += 1
        found = ", ".join(f"{name} {value:.6g}" for name, value in results.items())
        seconds = time.monotonic() - self.started
        line = f"[{self.done}/{self.total}, {seconds:.0f} s] {run.variant} seed {run.seed}: {found}"
        print(line, file=sys.stderr, flush=True)
