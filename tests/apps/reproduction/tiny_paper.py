"""A reproduction as small as can be: a random walk of `steps`, each as long as SECONDS says."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from apps.reproduction.cli import reproduce
from apps.reproduction.signals import sigterm_interrupts
from apps.reproduction.table import PaperRow, PaperTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from apps.reproduction.runs import PaperRun, Planned, Results
    from common.experiments.run import Run

ROWS = {"near": PaperRow.from_factor("near", 10, 2), "far": PaperRow("far")}


def setting(variant: str, full: bool) -> tuple[Mapping[str, Any], int]:
    return {"steps": 20 if full else 10}, 3


def train(planned: PaperRun, run: Run) -> None:
    done = run.rows
    with sigterm_interrupts():  # the Trainer obeys too, and then returns to the worker
        for step in range(done, planned.config["steps"]):
            time.sleep(float(os.environ.get("SECONDS_A_STEP", "0")))
            run.log({"place": random.Random(planned.seed + step).random()}, step=step)
    steps = planned.config["steps"]
    run.log({"steps": steps, "begun_at": done}, step=steps, split="result")


def report(
    planned: Planned, results: Mapping[str, Results], full: bool
) -> tuple[list[PaperTable], Figure]:
    from matplotlib.figure import Figure

    from apps.reproduction.figures import draw_seeds, draw_table

    table = PaperTable("steps", digits=0, reduced="" if full else "half the steps")
    begun = PaperTable("begun at", digits=0)
    for variant, runs in planned.items():
        table.add(ROWS[variant], [results[run.name]["steps"] for run in runs])
        begun.add(PaperRow(variant), [results[run.name]["begun_at"] for run in runs])
    figure = Figure()
    left, right = figure.subplots(1, 2)
    draw_seeds(
        left, {v: [run.name for run in runs] for v, runs in planned.items()}, "place", "train"
    )
    draw_table(right, table, "steps")
    return [table, begun], figure


if __name__ == "__main__":
    reproduce(__doc__ or "", "tiny", list(ROWS), setting, train, report, reduced=["near"])
