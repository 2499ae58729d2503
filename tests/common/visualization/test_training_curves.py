"""The curves hold exactly the numbers that were logged."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure

from common.errors import ExperimentError
from common.utils import save_experiment, start_experiment
from common.visualization import plot_training_curves


@pytest.fixture(autouse=True)
def experiments() -> None:
    rows = [
        (s, s / 10, split, 2.0 * s, 1 / (s + 1)) for s in range(5) for split in ("train", "val")
    ]
    columns = ["step", "epoch", "split", "time", "loss"]
    save_experiment("one", pd.DataFrame(rows, columns=columns))
    save_experiment("two", pd.DataFrame(rows[::2], columns=columns).assign(extra=7.0))


def curves(figure: Figure) -> dict[str, tuple[list[float], list[float]]]:
    (axes,) = figure.axes
    return {
        str(line.get_label()): (list(line.get_xdata()), list(line.get_ydata()))  # type: ignore[arg-type]
        for line in axes.lines
    }


def test_a_curve_per_experiment_and_split_with_the_logged_numbers() -> None:
    drawn = curves(plot_training_curves(["one", "two"]))
    steps, losses = [0, 1, 2, 3, 4], [1 / (s + 1) for s in range(5)]
    assert set(drawn) == {"one (train)", "one (val)", "two (train)"}
    for x, y in drawn.values():
        assert (x, y) == (steps, losses)


@pytest.mark.parametrize(
    ("x", "factor", "label"), [("epoch", 0.1, "epoch"), ("time", 2, "seconds since the start")]
)
def test_the_other_axes(x: str, factor: float, label: str) -> None:
    figure = plot_training_curves("one", x=x, splits=["val"], log_y=True)
    drawn = curves(figure)
    assert list(drawn) == ["one (val)"]
    assert drawn["one (val)"][0] == pytest.approx([s * factor for s in range(5)])
    axes = figure.axes[0]
    assert (axes.get_xlabel(), axes.get_xscale(), axes.get_yscale()) == (label, "linear", "log")


def test_a_metric_that_only_some_experiments_have_is_drawn_for_those() -> None:
    assert list(curves(plot_training_curves(["one", "two"], "extra"))) == ["two (train)"]


def test_a_run_that_is_still_going_can_be_drawn() -> None:
    run = start_experiment("live")
    run.log({"loss": 3.0}, step=1)
    assert curves(plot_training_curves("live"))["live (train)"] == ([1], [3.0])
    run.finish()


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_the_figure_is_saved_where_it_is_asked_for(tmp_path: Path, ending: str) -> None:
    path = tmp_path / "new" / f"curves.{ending}"
    plot_training_curves("one", output=path)
    signatures = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
    assert path.read_bytes().startswith(signatures[ending])


@pytest.mark.parametrize(
    ("arguments", "options", "message", "hint"),
    [
        (["on"], {}, "no experiment 'on'", "'one'"),
        (["one", "missing"], {}, "no experiment 'missing'", "one, two"),
        (["one"], {"metric": "los"}, "no experiment has a metric 'los'", "'loss'"),
        (["one"], {"x": "steps"}, "x cannot be 'steps'", "'step'"),
        (["one"], {"metric": "extra"}, "has logged 'extra'", ""),
        (["one"], {"splits": ["vall"]}, "vall", ""),
        (["one"], {"metric": "step"}, "no experiment has a metric 'step'", ""),
        ([], {}, "", ""),
    ],
)
def test_what_is_not_there_is_an_error_not_an_empty_figure(
    arguments: list[str], options: dict[str, str], message: str, hint: str
) -> None:
    with pytest.raises(ExperimentError) as caught:
        plot_training_curves(arguments, **options)  # type: ignore[arg-type]
    assert message in caught.value.message and hint in caught.value.hint
