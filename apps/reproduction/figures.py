"""Elements of figures in reproductions."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure

from apps.reproduction.table import PaperTable
from common.errors import UsageError
from common.experiments.statistics import estimate
from common.visualization.training_curves import read_curves


def draw_seeds(
    axes: Axes, groups: Mapping[str, Sequence[str]], metric: str, split: str, **style: object
) -> None:
    """Plot `metric` over steps: a colour per group of experiments, a thin line per seed."""
    for number, (label, names) in enumerate(groups.items()):
        rows = read_curves(names, metric)
        rows = rows[rows["split"] == split]
        for index, (_, part) in enumerate(rows.groupby("experiment_name")):
            axes.plot(
                part["step"],
                part[metric],
                color=f"C{number % 10}",
                linewidth=1.1,
                alpha=0.75,
                label=label if index == 0 else None,
                **style,  # type: ignore[arg-type]  # matplotlib's own keywords
            )
    axes.set_ylabel(metric.replace("_", " "))
    tidy(axes)


def draw_table(axes: Axes, table: PaperTable, unit: str) -> None:
    """Plot a line per row: the paper's number, the accepted range in grey, our seeds and their 95% interval."""
    for place, measured in enumerate(table.rows):
        row, found = measured.row, measured.found
        if row.accepted is not None:
            ends = [place, place]
            axes.plot(row.accepted, ends, "0.85", linewidth=9, solid_capstyle="butt", zorder=1)
        if row.value is not None:
            axes.plot(row.value, place, "D", color="C1", markersize=6, zorder=2)
        axes.plot(found, [place] * len(found), ".", color="C0", alpha=0.4, markersize=6, zorder=2)
        if len(found) == len(measured.values):
            result = estimate(found)
            axes.errorbar(
                result.mean, place, xerr=result.half_width, fmt="o", color="C0", capsize=4, zorder=3
            )
        elif measured.limit is not None:
            axes.plot(measured.limit, place, ">", color="C0", markersize=8, zorder=3)
    axes.plot([], [], "D", color="C1", label="paper")
    axes.errorbar([], [], xerr=[], fmt="o", color="C0", capsize=4, label="ours, 95% interval")
    if any(len(measured.found) < len(measured.values) for measured in table.rows):
        axes.plot([], [], ">", color="C0", label="ours, not reached by then")
    axes.set_yticks(range(len(table.rows)), [measured.row.name for measured in table.rows])
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    tidy(axes)


def tidy(axes: Axes) -> None:
    axes.grid(True, alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)


def check_figure(path: Path) -> None:
    """Raise UsageError if `save_figure` would fail, before hours of work."""
    formats = FigureCanvasBase.get_supported_filetypes()
    if path.suffix.lstrip(".") not in formats:
        raise UsageError(
            f"'{path}' has no supported ending",
            f"one of .{', .'.join(sorted(formats))}",
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path.parent):
        pass


def save_figure(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
