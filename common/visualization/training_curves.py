"""Plot a metric over training for several experiments in one figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.errors import ExperimentError, did_you_mean
from common.experiments.catalogue import Catalogue
from common.experiments.metrics import VAL_QUICK
from common.experiments.sql import query_experiments
from common.visualization.labels import drawable, plain, wrapped

_SIZE = (7.5, 4.5)  # inches
_MOST_INSIDE, _ROWS = 10, 32  # legend entries inside the axes, and per column beside them
_LINE_STYLES = ("-", "--", ":", "-.")  # for the first ten experiments, the next ten, ...
_X_LABELS = {"step": "optimizer step", "epoch": "epoch", "time": "seconds since the start"}


def plot_training_curves(
    experiments: str | Sequence[str],
    metric: str = "loss",
    *,
    x: str = "step",
    splits: Sequence[str] | None = None,
    log_x: bool = False,
    log_y: bool = False,
    title: str | None = None,
    output: str | Path | None = None,
) -> Figure:
    """Plot `metric` of one or more experiments, including running ones.

    NaN and infinities are gaps, and numbers beyond 1e300 are clipped: the legend counts both.

    Args:
        experiments: one or more names.
        x: step, epoch or time (seconds).
        splits: such as ("train", "val"); None: all. Each experiment has a colour; the first split
            is thin, the others have markers, hollow for evaluations of few batches (`val_quick`).
        log_x, log_y: logarithmic axes.
        output: file to save to (PNG, SVG or PDF by its ending).
    Returns: a matplotlib Figure (displayed automatically in a notebook).
    Raises ExperimentError for an unknown experiment or metric.
    """
    names = [experiments] if isinstance(experiments, str) else list(experiments)
    if x not in _X_LABELS:
        raise ExperimentError(f"unknown x '{x}'", did_you_mean(x, list(_X_LABELS)))
    rows = read_curves(names, metric, x)
    shown = sorted(rows["split"].unique().tolist(), key=lambda s: (s != "train", s))
    if splits is not None:
        shown = check_splits(splits, rows, metric)
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.add_subplot()
    for number, name in enumerate(names):
        for split in shown:
            part = rows[(rows["experiment_name"] == name) & (rows["split"] == split)]
            if part.empty:
                continue
            dense = split == "train"
            values, note = drawable(part[metric])
            axes.plot(
                drawable(part[x])[0],
                values,
                color=f"C{number % 10}",
                linestyle=_LINE_STYLES[number // 10 % len(_LINE_STYLES)],
                alpha=0.55 if dense and len(shown) > 1 else 1.0,
                linewidth=1.0 if dense else 1.8,
                marker="" if dense else "o",
                markersize=4,
                markerfacecolor="white" if split == VAL_QUICK else None,
                label=f"{plain(name)} ({plain(split)}{note})",
            )
    axes.set_xlabel(_X_LABELS[x])
    axes.set_ylabel(plain(metric.replace("_", " ")))
    axes.set_title(wrapped(title or "", 70))
    axes.set_xscale("log" if log_x else "linear")
    axes.set_yscale("log" if log_y else "linear")
    axes.grid(True, alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    _add_legend(figure, axes)
    if output is not None:
        path = Path(output)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    return figure


def _add_legend(figure: Figure, axes: Axes) -> None:
    """Place the legend inside the axes for few curves, else in columns beside a wider figure."""
    labels = [str(line.get_label()) for line in axes.lines]
    if len(labels) <= _MOST_INSIDE:
        axes.legend(frameon=False)
        return
    columns = math.ceil(len(labels) / _ROWS)
    inches = columns * (0.5 + 0.065 * max(map(len, labels)))
    figure.set_size_inches(_SIZE[0] + inches, _SIZE[1] + 1.5)
    figure.legend(loc="outside right upper", ncols=columns, frameon=False, fontsize="x-small")


def check_splits(splits: Sequence[str], rows: pd.DataFrame, metric: str) -> list[str]:
    """`splits`. Raises ExperimentError for one that is not in `rows`."""
    found = rows["split"].unique().tolist()
    for split in splits:
        if split not in found:
            raise ExperimentError(f"no '{metric}' on split '{split}'", did_you_mean(split, found))
    return list(splits)


def read_curves(names: Sequence[str], metric: str, x: str = "step") -> pd.DataFrame:
    """Query columns experiment_name, split, `x` and `metric`, ordered by step. Raises
    ExperimentError for an unknown experiment or metric."""
    catalogue = Catalogue()
    metrics = catalogue.metrics()
    if metric not in metrics:
        hint = did_you_mean(metric, metrics) if metrics else "there are no experiments yet"
        raise ExperimentError(f"no experiment has a metric '{metric}'", hint)
    for name in names:
        catalogue.manifest(name)  # raises if it does not exist
    quoted = metric.replace('"', '""')
    listed = ", ".join("'" + name.replace("'", "''") + "'" for name in names)
    rows = query_experiments(
        f'SELECT experiment_name, split, {x}, "{quoted}" FROM experiments '
        f'WHERE experiment_name IN ({listed}) AND "{quoted}" IS NOT NULL ORDER BY step'
    )
    if rows.empty:
        raise ExperimentError(f"none of {', '.join(names)} has logged '{metric}'")
    return rows
