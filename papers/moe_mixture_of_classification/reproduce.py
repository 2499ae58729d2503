"""Table 1 of Chen et al. (NeurIPS 2022), "Towards Understanding the Mixture-of-Experts Layer in Deep Learning".

    python papers/moe_mixture_of_classification/reproduce.py           5 seeds of the paper's setting
    python papers/moe_mixture_of_classification/reproduce.py --full    10 seeds, as in the paper

Runs in the store are not repeated, so the same command continues an interrupted table.
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

PAPER = "moe_mixture_of_classification"
TITLE = "Chen et al. 2022, Table 1: test accuracy (%)"
BASE: dict[str, Any] = {
    "points": 16_000,  # for training, and as many to test
    "experts": 8,
    "filters": 16,  # 8 for each class
    "epochs": 501,
    "stop_loss": 0.314,
    "expert_rate": 1e-3,
    "router_rate": 0.1,
}
SETTINGS = [  # 1 to 4; noise is the length of the noise patch, gamma_max that of the misleading one
    {"noise": 1.0, "gamma_max": 3.0},
    {"noise": 2.0, "gamma_max": 3.0},
    {"noise": 1.0, "gamma_max": 2.0},
    {"noise": 2.0, "gamma_max": 2.0},
]
# Mean and standard deviation over the paper's 10 seeds, settings 1 to 4.
ACCURACY = {
    "nonlinear": [(99.46, 0.55), (98.09, 1.27), (99.99, 0.02), (98.92, 1.18)],
    "linear": [(92.99, 2.11), (88.48, 1.96), (95.93, 1.34), (93.30, 1.48)],
}
ENTROPY = {"nonlinear-s1": (0.098, 0.087), "linear-s1": (1.300, 0.044)}
MIN_SEEDS = 5
# {"nonlinear-s1": (configuration, published accuracy), ...}
VARIANTS = {
    f"{kind}-s{number}": (
        BASE | SETTINGS[number - 1] | {"expert": kind},
        ACCURACY[kind][number - 1],
    )
    for kind in ACCURACY
    for number in (1, 2, 3, 4)
}


def setting(variant: str, full: bool) -> tuple[Mapping[str, Any], int]:
    return VARIANTS[variant][0], 10 if full else MIN_SEEDS


def train_run(planned: PaperRun, run: Run) -> None:
    from papers.moe_mixture_of_classification.mixture import train

    if run.rows:
        run.resume_from(0)  # half a minute needs no checkpoint
    results = train(planned.config, planned.seed, run.log)
    run.log(results, step=int(results["epochs"]) - 1, split="result")


def report(
    planned: Planned, results: Mapping[str, Results], full: bool
) -> tuple[list[PaperTable], Figure]:
    made = tables(planned, results)
    return made, draw(planned, made[0])


def tables(planned: Planned, results: Mapping[str, Results]) -> list[PaperTable]:
    """Test accuracies and dispatch entropies (in the paper only for setting 1).

    Reproduced means within two of the paper's standard deviations.
    """
    accuracy = PaperTable(TITLE, MIN_SEEDS)
    entropy = PaperTable("Dispatch entropy (nats)", MIN_SEEDS, digits=3)
    for name, runs in planned.items():
        row = PaperRow.from_deviation(name, *VARIANTS[name][1], times=2, digits=2)
        accuracy.add(row, [results[run.name]["test_accuracy"] for run in runs])
        row = PaperRow(name)
        if name in ENTROPY:
            row = PaperRow.from_deviation(name, *ENTROPY[name], times=2, digits=3)
        entropy.add(row, [results[run.name]["dispatch_entropy"] for run in runs])
    return [accuracy, entropy]


def draw(planned: Planned, accuracy: PaperTable) -> Figure:
    """The accuracies beside the paper's, and the dispatch entropies over the epochs."""
    from matplotlib.figure import Figure

    from apps.reproduction.figures import draw_seeds, draw_table

    figure = Figure(figsize=(12, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.2, 1))
    draw_table(left, accuracy, "test accuracy (%)")
    shown = [name for name in planned if name in ENTROPY] or list(planned)
    groups = {name: [run.name for run in planned[name]] for name in shown}
    draw_seeds(right, groups, "dispatch_entropy", "train")
    right.set_xlabel("epoch")
    right.set_ylabel("dispatch entropy (nats)")
    return figure


if __name__ == "__main__":
    reproduce(__doc__ or "", PAPER, list(VARIANTS), setting, train_run, report)
