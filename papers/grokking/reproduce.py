"""Two ways to grok sooner, with controls for the effect of weight decay.

Lee et al. 2024, "Grokfast" (multiplication modulo 97, a Decoder), and Prieto et al. (ICLR 2025),
"Grokking at the Edge of Numerical Stability" (addition modulo 113, an MLP).

    python papers/grokking/reproduce.py           3 seeds of the MLP, 1 of the Decoder for 1,500 steps
    python papers/grokking/reproduce.py --full    3 to 10 seeds of both, to the end: about 3 hours on 2 cores
    python papers/grokking/reproduce.py --full --only ema ma adamw

Runs in the store are not repeated; the same command resumes an interrupted one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from apps.reproduction.cli import reproduce
from apps.reproduction.table import PaperRow, PaperTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from apps.reproduction.runs import PaperRun, Planned, Results
    from common.experiments.run import Run

PAPER = "grokking"
REDUCED_STEPS = 1500
SEEDS = 3
FAST, FAST_SEEDS = ["ema", "ma", "adamw"], 10  # seeds differ by a factor of 3
MULTIPLICATION: dict[str, Any] = {
    "modulus": 97,
    "width": 128,
    "normalized_residual": True,
    "batch_size": 512,
    "lr": 1e-3,
    "adamw_decay": 0.0,
    "filter": "none",
    "filter_settings": {},
    "measure_every_steps": 50,
    "max_steps": 10_000,
}
ADDITION: dict[str, Any] = {
    "modulus": 113,
    "width": 200,
    "train_fraction": 0.4,
    "lr": 0.01,
    "beta2": 0.99,
    "eps": 1e-25,
    "orthogonal": False,
    "weight_decay": 0.0,
    "max_epochs": 500,
}


def filtered(kind: str, **settings: float) -> dict[str, Any]:
    return MULTIPLICATION | {"filter": kind, "filter_settings": settings}


# {variant: (configuration, the paper's row)}. For a single published run we accept half to double.
DECODER = {
    "baseline": (
        MULTIPLICATION | {"max_steps": 80_000, "measure_every_steps": 250},
        PaperRow.from_factor("Adam", 39_890, 2),
    ),
    "ema": (
        filtered("ema", decay=0.98, strength=2.0, weight_decay=0.005),
        PaperRow.from_factor("Grokfast EMA, Adam with L2 0.005", 910, 2),
    ),
    "ma": (
        filtered("ma", window=100, strength=5.0, weight_decay=0.01),
        PaperRow.from_factor("Grokfast MA, Adam with L2 0.01", 790, 2),
    ),
    "l2": (filtered("none", weight_decay=0.005), PaperRow("Adam with L2 0.005, no filter")),
    "l2_ma": (filtered("none", weight_decay=0.01), PaperRow("Adam with L2 0.01, no filter")),
    "adamw": (MULTIPLICATION | {"adamw_decay": 1.0}, PaperRow("AdamW, decay 1, no filter")),
    "prenorm": (
        filtered("ema", decay=0.98, strength=2.0, weight_decay=0.005)
        | {"normalized_residual": False},
        PaperRow("Grokfast EMA, pre-norm blocks"),
    ),
}
MLP = {
    "orthogonal": (
        ADDITION | {"orthogonal": True},
        PaperRow("AdamW with orthogonal gradients", "within 300", 300, (0, 300)),
    ),
    "decay0": (ADDITION, PaperRow("AdamW, decay 0")),
    "decay2": (ADDITION | {"weight_decay": 2.0}, PaperRow("AdamW, decay 2")),
    "decay6": (ADDITION | {"weight_decay": 6.0}, PaperRow("AdamW, decay 6")),
}
REDUCED_DECODER = ["baseline", "ema", "adamw"]


def setting(variant: str, full: bool) -> tuple[Mapping[str, Any], int]:
    """Without `full`: one seed and at most REDUCED_STEPS for the Decoder; the MLP is unchanged."""
    config = (DECODER | MLP)[variant][0]
    if variant in DECODER and not full:
        return config | {"max_steps": REDUCED_STEPS, "measure_every_steps": 50}, 1
    return config, FAST_SEEDS if variant in FAST else SEEDS


def train_run(planned: PaperRun, run: Run) -> None:
    from papers.grokking import addition, multiplication

    network = multiplication if planned.variant in DECODER else addition
    network.train(planned.config, planned.seed, run)


def report(
    planned: Planned, results: Mapping[str, Results], full: bool
) -> tuple[list[PaperTable], Figure]:
    """Steps of the Decoder and epochs of the MLP to 95%, for the variants run."""
    reduced = "" if full else f"at most {REDUCED_STEPS:,} steps"
    kinds = {
        "steps": (DECODER, PaperTable("Decoder: steps to 95%", digits=0, reduced=reduced)),
        "epochs": (MLP, PaperTable("MLP: epochs to 95%", digits=0)),
    }
    made: dict[str, tuple[PaperTable, Planned]] = {}
    for unit, (variants, table) in kinds.items():
        mine = {variant: runs for variant, runs in planned.items() if variant in variants}
        for variant, runs in mine.items():
            limit = runs[0].config[f"max_{unit}"]
            found = [results[run.name].get(unit) for run in runs]
            table.add(variants[variant][1], found, limit)
        if mine:
            made[unit] = (table, mine)
    return [table for table, _ in made.values()], draw(made)


def draw(made: Mapping[str, tuple[PaperTable, Planned]]) -> Figure:
    """A row of plots for each table: accuracy over time, and the table."""
    from matplotlib.figure import Figure

    from apps.reproduction.figures import draw_seeds, draw_table

    figure = Figure(figsize=(12, 4.2 * len(made)), layout="constrained")
    grid = figure.subplots(len(made), 2, squeeze=False)
    for (unit, (table, planned)), (left, right) in zip(made.items(), grid, strict=True):
        groups = {variant: [run.name for run in runs] for variant, runs in planned.items()}
        draw_seeds(left, groups, "accuracy", "val")
        left.set_ylabel("validation accuracy")
        left.set_xlabel(unit)
        draw_table(right, table, f"{unit} to 95% validation accuracy")
        for axes in (left, right):
            axes.set_xscale("log")
    return figure


if __name__ == "__main__":
    reproduce(
        __doc__ or "",
        PAPER,
        [*DECODER, *MLP],
        setting,
        train_run,
        report,
        reduced=[*REDUCED_DECODER, *MLP],
    )
