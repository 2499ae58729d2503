"""Plot curves as text in a terminal."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence

import plotext

from common.experiments.metrics import VAL_QUICK, preferred_split
from common.visualization.labels import drawable, printable
from common.visualization.training_curves import check_splits, read_curves

_COLOURS = ("blue", "orange", "green", "red", "magenta", "cyan", "yellow", "gray")


def draw_in_terminal(
    experiments: Sequence[str],
    metric: str,
    *,
    splits: Sequence[str] | None = None,
    width: int = 100,
    height: int = 25,
    colours: bool = True,
) -> str:
    """Plot `metric` over steps as text, a curve per experiment and split.

    Without `splits` the main split (see `preferred_split`), with `val_quick` if it is `val`; for a
    single experiment all splits. NaN and infinities are gaps. Without colours, letters mark the
    curves. Raises ExperimentError for an unknown experiment or metric.
    """
    rows = read_curves(experiments, metric)
    if splits is None and len(experiments) > 1:
        main_split = preferred_split(rows["split"])
        quick = main_split == "val" and (rows["split"] == VAL_QUICK).any()
        splits = [VAL_QUICK, main_split] if quick else [main_split]
    if splits is not None:
        rows = rows[rows["split"].isin(check_splits(splits, rows, metric))]
    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plotsize(width, height)
    plotext.title(printable(metric))
    plotext.xlabel("step")
    empty, heights = [], []
    for number, ((name, split), part) in enumerate(
        rows.groupby(["experiment_name", "split"], sort=False)
    ):
        values, note = drawable(part[metric])
        points = [(x, y) for x, y in zip(part["step"], values, strict=True) if math.isfinite(y)]
        label = printable(f"{name} ({split}){note}")
        if not points:
            empty.append(label)
            continue
        heights += [y for _, y in points]
        plotext.plot(
            [x for x, _ in points],
            [y for _, y in points],
            label=label,
            marker="braille" if colours else string.ascii_letters[number % 52],
            color=_COLOURS[number % len(_COLOURS)],
        )
    notes = "".join(f"\nnothing to draw of {label}" for label in empty)
    if not heights:
        return f"{printable(metric)}{notes}"
    _label_heights(min(heights), max(heights))
    text: str = plotext.build()
    return (text if colours else plotext.uncolorize(text)) + notes


def _label_heights(lowest: float, highest: float) -> None:
    """Ticks in powers of ten where plotext, which has no exponents, would write only zeros."""
    largest = max(abs(lowest), abs(highest))
    if largest >= 1e7 or 0 < largest < 0.01:
        ticks = [lowest + (highest / 6 - lowest / 6) * step for step in range(7)]
        plotext.yticks(ticks, [f"{tick:.3g}" for tick in ticks])
