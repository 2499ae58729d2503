"""The curves hold exactly the numbers that were logged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from apps.experiments.terminal_curves import draw_in_terminal
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


@pytest.mark.slow
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
        (["one"], {"x": "steps"}, "unknown x 'steps'", "'step'"),
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


# Numbers that no axis can be divided by, and what a legend says of them.
EXTREMES = {
    "nan": ([np.nan] * 3, ", 3 not finite"),
    "infinite": ([np.inf, -np.inf, 1.0], ", 2 not finite"),
    "huge": ([1e308, -1e308, 1e308], ", 3 beyond 1e+300"),
    "tiny": ([5e-324, 1e-310, 0.0], ""),
    "single": ([3.0], ""),
}


def save_values(name: str, values: list[float], metric: str = "loss", split: str = "val") -> None:
    save_experiment(
        name, pd.DataFrame({"step": range(len(values)), "split": split, metric: values})
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Data has no positive values")  # of tiny and log_y
@pytest.mark.parametrize("name", EXTREMES)
@pytest.mark.parametrize("log_y", [False, True])
def test_any_numbers_can_be_drawn(name: str, log_y: bool, tmp_path: Path) -> None:
    values, note = EXTREMES[name]
    save_values(name, values)
    path = tmp_path / "a.png"
    drawn = curves(plot_training_curves([name, "one"], splits=["val"], log_y=log_y, output=path))
    assert path.read_bytes().startswith(b"\x89PNG")
    heights = drawn[f"{name} (val{note})"][1]
    assert np.isfinite(heights).tolist() == np.isfinite(values).tolist()


@pytest.mark.parametrize("name", EXTREMES)
@pytest.mark.parametrize("others", [[], ["one"]])
def test_any_numbers_can_be_drawn_in_a_terminal(name: str, others: list[str]) -> None:
    values, note = EXTREMES[name]
    save_values(name, values)
    text = draw_in_terminal([name, *others], "loss", width=90, height=20, colours=False)
    assert f"{name} (val){note}" in text
    assert max(map(len, text.splitlines())) <= 92
    if name == "huge":
        assert "1e+300" in text


NAMES = [
    "$x",
    "$x^{$",
    "_hidden",
    "a_b",
    "m" * 300,
    "\x1b[31mred\n\x07",
    "<b>&",
    "%s {0}",
    "\\frac",
]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_any_name_can_be_drawn(name: str, tmp_path: Path) -> None:
    save_values("three", [3.0, 2.0, 1.0], split=name)
    figure = plot_training_curves("three", title=name, output=tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000
    (shown,) = (text.get_text() for text in figure.axes[0].get_legend().get_texts())  # type: ignore[union-attr]
    assert shown.startswith("three (") and len(shown) < 70 and shown.isprintable()
    text = draw_in_terminal(["three"], "loss", width=90, height=20, colours=False)
    assert "\x1b" not in text and "\x07" not in text


@pytest.mark.parametrize("metric", ["$x^{$", "_hidden", "m" * 300])
def test_a_metric_of_any_name_can_be_drawn(metric: str, tmp_path: Path) -> None:
    save_values("three", [3.0, 2.0, 1.0], metric=metric)
    plot_training_curves("three", metric, output=tmp_path / "a.png")
    assert draw_in_terminal(["three"], metric, colours=False)


@pytest.mark.slow
def test_the_legend_of_a_hundred_curves_leaves_room_for_them(tmp_path: Path) -> None:
    splits = [f"split_{number:03}" for number in range(100)]
    save_experiment("many", pd.DataFrame({"step": 1, "split": splits, "loss": 2.0}))
    figure = plot_training_curves("many", output=tmp_path / "a.png")
    width, height = figure.get_size_inches()
    (axes,) = figure.axes
    place = axes.get_position()
    assert place.width * width > 5 and place.height * height > 4
    figure.draw_without_rendering()  # at the resolution of the figure, not of the file
    legend = figure.legends[0].get_window_extent()
    assert legend.x0 > axes.get_window_extent().x1 and legend.y0 > 0


def test_the_eleventh_run_does_not_look_like_the_first() -> None:
    names = [f"run_{number:02}" for number in range(11)]
    for name in names:
        save_values(name, [3.0, 2.0])
    (axes,) = plot_training_curves(names).axes
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines}) == 11


def test_few_batches_have_hollow_markers_and_the_whole_split_full_ones() -> None:
    frame = pd.DataFrame({"split": ["val_quick"] * 2 + ["val"], "loss": [3.0, 2.0, 2.5]})
    save_experiment("run", frame)
    faces = {
        str(line.get_label()): line.get_markerfacecolor()
        for line in plot_training_curves("run").axes[0].lines
    }
    assert faces == {"run (val)": "C0", "run (val_quick)": "white"}
