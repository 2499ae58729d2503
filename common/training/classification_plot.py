"""Draw the report of a classifier: confusion, calibration, and what it is most confidently wrong about."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from common.training.evaluation_plot import draw_calibration, label_calibration
from common.visualization.labels import plain, wrapped

if TYPE_CHECKING:  # it imports torch
    from common.training.classification_report import ClassificationMetrics, Mistake

_PLACES = 12  # for mistakes
_MOST_NAMED = 20  # classes whose names and counts fit


def plot_classification(
    found: ClassificationMetrics,
    names: Sequence[str],
    *,
    title: str | None = None,
    output: str | Path | None = None,
) -> Figure:
    """Plot confusion and calibration, and below them the most confident mistakes if the inputs are images.

    Args:
        names: of the classes.
        output: file to save to (PNG, SVG or PDF by its ending).
    Returns: a matplotlib Figure (displayed automatically in a notebook).
    """
    pictures = [mistake for mistake in found.mistakes if _is_image(mistake)]
    figure = Figure(figsize=(10.5, 6.6 if pictures else 5.0), layout="constrained")
    upper: Figure | SubFigure = figure
    lower: SubFigure | None = None
    if pictures:
        upper, lower = figure.subfigures(2, 1, height_ratios=(3.2, 1), hspace=0.04, squeeze=False)[
            :, 0
        ]
    grid = upper.add_gridspec(2, 2, height_ratios=(3, 1), width_ratios=(1.15, 1))
    _draw_confusion(upper.add_subplot(grid[:, 0]), found.confusion, names)
    reliability = upper.add_subplot(grid[0, 1])
    shares = upper.add_subplot(grid[1, 1], sharex=reliability)
    draw_calibration(reliability, shares, found.calibration, "C0")
    label_calibration(reliability, shares)
    scalars = found.scalars()
    reliability.set_title(
        f"calibration error {scalars['calibration_error']:.2%}", fontsize="medium"
    )
    if lower is not None:
        lower.suptitle("most confident mistakes: label → prediction", fontsize="medium")
        for number, mistake in enumerate(pictures):
            _draw_mistake(lower.add_subplot(1, _PLACES, number + 1), mistake, names)
    accuracy = (
        f"accuracy {scalars['accuracy']:.2%} (95% interval {scalars['accuracy_low']:.2%} to "
        f"{scalars['accuracy_high']:.2%}, {found.num_rows:,} rows)"
    )
    figure.suptitle(wrapped(f"{title}: {accuracy}" if title else accuracy, 110))
    if output is not None:
        path = Path(output)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    return figure


def _draw_confusion(axes: Axes, confusion: npt.NDArray[np.int64], names: Sequence[str]) -> None:
    """Shares of each label; mistakes are few, so that a square root makes them visible."""
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    axes.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1)
    axes.set_xlabel("predicted")
    axes.set_ylabel("label")
    if len(names) > _MOST_NAMED:
        return
    labels = [plain(name, 14) for name in names]
    turned = 45 if max(map(len, labels)) > 3 else 0
    axes.set_xticks(range(len(labels)), labels, rotation=turned, ha="right" if turned else "center")
    axes.set_yticks(range(len(labels)), labels)
    for row, column in np.argwhere(confusion):
        colour = "white" if shares[row, column] > 0.4 else "black"
        count = int(confusion[row, column])
        axes.text(column, row, f"{count}", ha="center", va="center", color=colour, fontsize=8)


def _is_image(mistake: Mistake) -> bool:
    return mistake.inputs.ndim == 3 and len(mistake.inputs) in (1, 3)


def _draw_mistake(axes: Axes, mistake: Mistake, names: Sequence[str]) -> None:
    image = mistake.inputs.permute(1, 2, 0).float().clamp(0, 1).numpy()
    axes.imshow(image, cmap="gray", vmin=0, vmax=1)
    label, predicted = (plain(names[index], 8) for index in (mistake.label, mistake.predicted))
    axes.set_title(f"{label} → {predicted}", fontsize="medium", pad=3)
    axes.set_xlabel(f"{mistake.confidence:.0%}", fontsize="small", labelpad=2)
    axes.set_xticks([])
    axes.set_yticks([])
