"""Plot the loss by position and the calibration of a model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from common.visualization.labels import drawable, plain, wrapped

if TYPE_CHECKING:  # it imports torch
    from common.training.prediction_metrics import Calibration, PredictionMetrics

_MOST_ROWS = 4  # of the legend that fit the figure
_FEW = 30  # an accuracy over fewer predictions says little


def plot_evaluation(
    sets: Mapping[str, PredictionMetrics],
    *,
    title: str | None = None,
    output: str | Path | None = None,
) -> Figure:
    """Plot the loss by position and a reliability diagram; one colour per validation set.

    Args:
        sets: {name: result of `measure_predictions`}.
        output: file to save to (PNG, SVG or PDF by its ending).
    Returns: a matplotlib Figure (displayed automatically in a notebook).
    """
    figure = Figure(figsize=(10.5, 4.8), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=(3, 1), width_ratios=(1.25, 1))
    positions = figure.add_subplot(grid[:, 0])
    reliability = figure.add_subplot(grid[0, 1])
    shares = figure.add_subplot(grid[1, 1], sharex=reliability)
    labels = [
        f"{plain(name)} (loss {_short(found.loss)}{drawable(found.position_loss[1:])[1]}, calibration error "
        f"{found.calibration.expected_error:.1%})"
        for name, found in sets.items()
    ]
    for number, found in enumerate(sets.values()):
        colour = f"C{number % 10}"
        _draw_positions(positions, found, colour, labels[number])
        draw_calibration(reliability, shares, found.calibration, colour)
    positions.set_xscale("log", base=2)
    positions.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    positions.set_xlabel("tokens before the predicted one")
    positions.set_ylabel("loss (nats per token)")
    label_calibration(reliability, shares)
    positions.grid(True, alpha=0.25)
    positions.spines[["top", "right"]].set_visible(False)
    columns = max(1, min(len(sets), 130 // max(map(len, labels))))
    rows = math.ceil(len(sets) / columns)
    figure.set_size_inches(10.5, 4.8 + 0.23 * max(0, rows - _MOST_ROWS))
    figure.legend(loc="outside lower center", ncols=columns, frameon=False)
    if title:
        figure.suptitle(wrapped(title, 100))
    if output is not None:
        path = Path(output)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    return figure


def _short(number: float) -> str:
    return f"{number:.3f}" if abs(number) < 1e6 else f"{number:.3g}"


def _draw_positions(axes: Axes, found: PredictionMetrics, colour: str, label: str) -> None:
    """Plot means over neighbouring positions, and every position pale behind them."""
    index = np.arange(len(found.position_loss))
    measured = found.position_counts > 0
    losses = drawable(found.position_loss)[0]
    measured &= np.isfinite(losses)
    x, loss, counts = (v[measured] for v in (index, losses, found.position_counts))
    if not len(x):  # the curve of the legend entry
        axes.plot([], [], color=colour, label=label)
        return
    groups = np.unique(np.floor(4 * np.log2(x)), return_inverse=True)[1]  # four to a doubling
    sizes = np.bincount(groups, counts)
    means = [np.bincount(groups, values * counts) / sizes for values in (x, loss)]
    axes.plot(*means, color=colour, linewidth=1.8, label=label)
    axes.autoscale_view()
    shown = axes.get_ylim()
    axes.plot(x, loss, color=colour, alpha=0.25, linewidth=1, zorder=1, scaley=False)
    axes.set_ylim(shown, auto=True)


def draw_calibration(
    reliability: Axes, shares: Axes, calibration: Calibration, colour: str
) -> None:
    """Draw accuracy by confidence, and below it the share of the predictions in each bin."""
    x, y, counts = calibration.confidence, calibration.accuracy, calibration.counts
    reliability.plot(x[counts > 0], y[counts > 0], color=colour, alpha=0.5, linewidth=1)
    for marked, face in (((counts > 0) & (counts < _FEW), "white"), (counts >= _FEW, colour)):
        reliability.scatter(
            x[marked], y[marked], 18, facecolors=face, edgecolors=colour, zorder=3, clip_on=False
        )
    edges = np.linspace(0, 1, len(counts) + 1)
    shares.stairs(counts / counts.sum(), edges, color=colour, linewidth=1.4)


def label_calibration(reliability: Axes, shares: Axes) -> None:
    """Set up the axes of `draw_calibration`, which share x."""
    reliability.plot([0, 1], [0, 1], color="grey", linestyle=":", linewidth=1, zorder=0)
    reliability.set_ylabel("accuracy")
    reliability.set_ylim(-0.03, 1.03)
    reliability.tick_params(labelbottom=False)
    shares.set_xlabel(f"confidence (hollow: under {_FEW} predictions)")
    shares.set_ylabel("share")
    shares.set_yscale("log")
    shares.set_xlim(0, 1)
    for axes in (reliability, shares):
        axes.grid(True, alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
