"""The picture of an evaluation holds the numbers that were measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.training.evaluation_plot import plot_evaluation
from common.training.prediction_metrics import Calibration, PredictionMetrics


def metrics(time: int = 40, many: int = 1000) -> PredictionMetrics:
    loss = 1 + 1 / np.arange(time).clip(1)
    loss[0] = np.nan
    counts = np.full(time, 7)
    counts[0] = 0
    calibration = Calibration(
        np.array([0, 5, many]), np.array([np.nan, 0.5, 0.9]), np.array([np.nan, 0.4, 0.8])
    )
    return PredictionMetrics(1.5, 7 * (time - 1), 0.4, 0.6, None, loss, counts, calibration)


def test_the_points_are_the_measured_ones() -> None:
    figure = plot_evaluation({"val": metrics()})
    positions, reliability, shares = figure.axes
    measured = next(line for line in positions.lines if len(line.get_xdata()) == 39)
    assert list(measured.get_xdata()) == list(range(1, 40))
    assert measured.get_ydata() == pytest.approx(1 + 1 / np.arange(1, 40))
    hollow, full = (np.asarray(points.get_offsets()) for points in reliability.collections)
    assert hollow.tolist() == [[0.5, 0.4]] and full.tolist() == [[0.9, 0.8]]
    (steps,) = shares.patches
    assert steps.get_data().values == pytest.approx([0, 5 / 1005, 1000 / 1005])  # type: ignore[attr-defined]


def test_the_smoothed_curve_is_a_mean_weighted_by_counts() -> None:
    found = metrics()
    (smooth,) = (
        line for line in plot_evaluation({"val": found}).axes[0].lines if line.get_label()[0] != "_"
    )
    assert list(smooth.get_xdata())[:4] == [1, 2, 3, 4]  # apart from one another at the start
    # ... and together at the end: 32 to 38 is a quarter of a doubling.
    x, y = (np.asarray(values)[-2] for values in (smooth.get_xdata(), smooth.get_ydata()))
    assert x == 35 and y == pytest.approx(np.mean([1 + 1 / k for k in range(32, 39)]))


def test_several_sets_are_told_apart_and_saved(tmp_path: Path) -> None:
    sets = {"val": metrics(), "costs $5 and $6.txt": metrics(8), "a" * 60: metrics(2, 0)}
    path = tmp_path / "new" / "report.png"
    figure = plot_evaluation(sets, title="exp_001", output=path)
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 20_000
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[0] == "val (loss 1.500, calibration error 10.0%)"
    assert len(labels) == len({line.get_color() for line in figure.axes[0].lines}) == 3


@pytest.mark.slow
def test_any_numbers_and_names_can_be_drawn(tmp_path: Path) -> None:
    good = metrics()
    heights = np.where(np.arange(40) % 2, 1e308, -1e308)
    sets = {
        "_nan": replace(good, loss=np.nan, position_loss=good.position_loss * np.nan),
        "$huge^{$": replace(good, loss=1e308, position_loss=heights),
        "x" * 300: good,
    } | {f"set_{number}": good for number in range(60)}
    figure = plot_evaluation(sets, title="$t^{$ " + "word " * 90, output=tmp_path / "a.png")
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(labels) == len(sets)
    assert labels[0].startswith(" _nan (loss nan, 39 not finite")
    assert labels[1].startswith(r"\$huge^{\$ (loss 1e+308, 39 beyond 1e+300")
    height = figure.axes[0].get_position().height * figure.get_size_inches()[1]
    assert height > 2  # inches
