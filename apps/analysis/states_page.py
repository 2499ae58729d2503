"""States over a text as a page of curves above the text, and as a figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.analysis.page import Page, facts, make_page
from apps.analysis.states import Influence, StateCurve, States
from apps.analysis.text import text_html
from apps.analysis.tokens import label, vocabulary_texts
from common.data.tokenizers import Tokenizer
from common.errors import DataError
from common.training.prediction_metrics import Floats
from common.utils.tables import format_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_POINTS = 2**20  # of the curves of a page


def states_page(states: States, tokenizer: Tokenizer, title: str) -> Page:
    """Create the page. Raises DataError if it would have too many points."""
    points = sum(2 * curve.norms.size for curve in states.curves)
    points += sum(influence.norms.size for influence in states.influences)
    if points > _MOST_POINTS:
        raise DataError(
            f"{points:,} points of curves are too many for a page (limit {_MOST_POINTS:,})",
            "use a smaller --context-length, or an --output that ends in .png",
        )
    words = vocabulary_texts(tokenizer)
    data = {
        "labels": [label(words[i], int(i)) for i in states.ids],
        "layers": [
            {
                "name": layer_name(influence),
                "of": influence.of,
                "tokens_50": influence.tokens_with(0.5),
                "tokens_90": influence.tokens_with(0.9),
                "influence": _numbers(shares(influence)),
                "curves": [_curve(c) for c in states.curves if c.layer == influence.layer],
            }
            for influence in states.influences
        ],
    }
    text = text_html(tokenizer, states.ids.tolist(), words)
    body = f"{facts(summary(states))}{_CONTROLS}{text}{_INFLUENCE}"
    return make_page(title, body, "states.js", data, height=900)


_CONTROLS = (
    '<div class="choices" id="layers"></div><div class="choices" id="tensors"></div>'
    '<div class="legend" id="groups"></div>'
    '<h2>norm of the state, |S<sub>t</sub>|</h2><div id="norms"></div>'
    "<h2>relative change, |S<sub>t</sub> &minus; S<sub>t&minus;1</sub>| / |S<sub>t</sub>|</h2>"
    '<div id="changes"></div>'
    "<p>The colour of a token is the change that it makes, the mean of the curves. Hover the text or a curve, "
    "or use <kbd>&larr;</kbd> <kbd>&rarr;</kbd>; <kbd>&uarr;</kbd> <kbd>&darr;</kbd> change the layer. Curves are cut off at a few values that are far larger than all others.</p>"
)
_INFLUENCE = (
    "<h2>how long information lasts</h2><p>The influence of each token on what the model holds after the last "
    "one: the norm of the Jacobian by its embedding, as a share of the sum over the text. Layers: their "
    "state, or the output of a layer without a recurrent state. Prediction: the output that the next token is "
    "predicted from. Both axes are logarithmic; 1 token back is the last token itself.</p>"
    '<div id="influence"></div><div id="reach"></div>'
)


def layer_name(influence: Influence) -> str:
    """`layer 0 (gru)`, or `prediction`."""
    if influence.layer is None:
        return influence.mixer
    return f"layer {influence.layer} ({influence.mixer})"


def shares(influence: Influence) -> Floats:
    """(tokens,) the share of each token in the whole influence, from the last token back."""
    backwards: Floats = influence.norms[::-1]
    return backwards / max(float(backwards.sum()), 1e-30)


def _curve(curve: StateCurve) -> dict[str, Any]:
    return {
        "tensor": curve.tensor,
        "size": curve.size,
        "groups": curve.groups,
        "norms": [_numbers(values) for values in curve.norms.T],
        "changes": [_numbers(values) for values in curve.changes.T],
    }


def _numbers(values: Floats) -> list[float | None]:
    """With 5 digits; None for NaN."""
    return [None if math.isnan(value) else float(f"{value:.5g}") for value in values]


def summary(states: States) -> dict[str, str]:
    """The numbers of the text."""
    recurrent = {curve.layer for curve in states.curves}
    prediction = states.influences[-1]
    return {
        "tokens": f"{len(states.ids):,}",
        "recurrent layers": f"{len(recurrent)} of {len(states.influences) - 1}",
        "half of the influence on the prediction": f"last {prediction.tokens_with(0.5):,} tokens",
        "90% of it": f"last {prediction.tokens_with(0.9):,} tokens",
    }


def states_table(states: States, style: str = "table") -> str:
    """Format norms, changes and influences for a terminal: a row per tensor of a state.

    `norm` is of the last state, `change` the median over tokens and heads; `tokens_50` and `tokens_90`
    are the last tokens that have half and 90% of the influence on the layer.
    """
    rows: list[list[object]] = []
    for influence in states.influences:
        reach = [influence.tokens_with(0.5), influence.tokens_with(0.9)]
        place = ["" if influence.layer is None else influence.layer, influence.mixer]
        curves = [curve for curve in states.curves if curve.layer == influence.layer]
        if not curves:
            rows.append([*place, influence.of, None, None, None, *reach])
        for curve in curves:
            norm = float(np.sqrt(np.square(curve.norms[-1]).sum()))
            change = float(np.nanmedian(curve.changes))
            rows.append([*place, curve.tensor, curve.size, norm, change, *reach])
    columns = ["layer", "mixer", "state", "size", "norm", "change", "tokens_50", "tokens_90"]
    return format_rows(columns, rows, style)


def plot_states(states: States, title: str) -> Figure:
    """Plot norms and changes of every tensor, a row each, and all influences below, as a matplotlib Figure."""
    from matplotlib.figure import Figure

    rows = len(states.curves)
    figure = Figure(figsize=(11, 1.9 * rows + 4.6), layout="constrained")
    halves = figure.subfigures(2, 1, squeeze=False, height_ratios=[1.9 * rows, 4])
    above, below = halves[:, 0]
    axes = above.subplots(rows, 2, squeeze=False, sharex=True)
    for (norms, changes), curve in zip(axes, states.curves, strict=True):
        _plot_curves(norms, curve.norms, curve.groups)
        _plot_curves(changes, curve.changes, curve.groups)
        norms.set_title(f"layer {curve.layer} ({curve.mixer}), {curve.tensor}: norm", fontsize=8)
        changes.set_title("relative change", fontsize=8)
        changes.legend(frameon=False, fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5))
    for last in axes[-1]:
        last.set_xlabel("token", fontsize=8)
    _plot_influences(below.subplots(), states.influences)
    figure.suptitle(title.replace("$", r"\$"), fontsize=10)
    return figure


def _plot_curves(axes: Axes, values: Floats, names: Sequence[str]) -> None:
    for name, curve in zip(names, values.T, strict=True):
        axes.plot(np.arange(1, len(curve) + 1), curve, linewidth=0.8, label=name)
    _tidy(axes)


def _plot_influences(axes: Axes, influences: Sequence[Influence]) -> None:
    for influence in influences:
        share = shares(influence)
        back = np.arange(1, len(share) + 1)
        of_layer = influence.layer is not None
        axes.plot(
            back[share > 0],
            share[share > 0],
            color=None if of_layer else "black",
            linewidth=1.0 if of_layer else 1.6,
            label=layer_name(influence),
        )
    axes.set(xscale="log", yscale="log")
    axes.set_xlabel("tokens back (1: the last token)", fontsize=8)
    axes.set_ylabel("share of the influence", fontsize=8)
    axes.legend(frameon=False, fontsize=7)
    _tidy(axes)


def _tidy(axes: Axes) -> None:
    axes.tick_params(labelsize=7)
    axes.grid(True, alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
