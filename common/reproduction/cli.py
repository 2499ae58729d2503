"""The command line that every reproduction has."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.utils.paths import get_assets_dir
from common.utils.tables import FORMATS

if TYPE_CHECKING:  # it imports torch
    from common.reproduction.runs import PaperRun, Results


def parse_arguments(
    description: str,
    paper: str,
    variants: Sequence[str],
    *,
    seeds: int,
    full_seeds: int,
    reduced: Sequence[str] | None = None,
) -> argparse.Namespace:
    """`full`, `seeds`, `only`, `jobs`, `format` and `figure`.

    Args:
        variants: those that there are; `only` is those asked for, in their order.
        reduced: those that are run without --full when none are named; None: all.
        seeds, full_seeds: how many by default.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--full", action="store_true", help="the paper's own setting instead of the reduced one")
    add("--seeds", type=_positive, help=f"how many (default: {seeds}; with --full {full_seeds})")
    add("--only", nargs="+", choices=variants, metavar="VARIANT", help=f"of {', '.join(variants)}")
    add("--jobs", type=_positive, default=os.cpu_count() or 1, help="runs at a time")
    add("--format", choices=FORMATS, default="table")
    figure = get_assets_dir() / "outputs" / "figures" / f"{paper}.png"
    add("--figure", type=Path, default=figure, metavar="FILE", help=f"default: {figure}")
    arguments = parser.parse_args()
    arguments.seeds = arguments.seeds or (full_seeds if arguments.full else seeds)
    default = variants if arguments.full or reduced is None else reduced
    arguments.only = [name for name in variants if name in (arguments.only or default)]
    return arguments


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


class Progress:
    """A line on stderr for every run that ends."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self.started = time.monotonic()

    def __call__(self, run: PaperRun, results: Results) -> None:
        self.done += 1
        found = ", ".join(f"{name} {value:.6g}" for name, value in results.items())
        seconds = time.monotonic() - self.started
        line = f"[{self.done}/{self.total}, {seconds:.0f} s] {run.variant} seed {run.seed}: {found}"
        print(line, file=sys.stderr, flush=True)
