"""Token embeddings in the plane: an interactive page, and a figure with labels of frequent tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from apps.analysis.embeddings import Projection
from apps.analysis.page import Page, facts, make_page
from common.training.prediction_metrics import Counts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NAMED = 120  # labelled tokens in the figure
# Colour-blind safe palette (Okabe and Ito 2008).
KINDS = {
    "word start": "#0072b2",
    "word part": "#56b4e9",
    "number": "#e69f00",
    "sign": "#d55e00",
    "space": "#009e73",
    "other": "#999999",
}


def kind_of(text: str) -> str:
    """Kind of a token by its text: one of KINDS. Special tokens and partial characters are `other`."""
    core = text.strip()
    if not core:
        return "space" if text else "other"
    if core.isalpha():
        return "word start" if text[0].isspace() else "word part"
    if core.isnumeric():
        return "number"
    if "\ufffd" in core or any(c.isalnum() for c in core):
        return "other"
    return "sign"


def embeddings_page(
    projection: Projection, texts: Sequence[str], labels: Sequence[str], counts: Counts, title: str
) -> Page:
    """Args:
    texts, labels: for every token, from `vocabulary_texts` and `label`.
    counts: (vocab_size,) occurrences in the training text.
    """
    kinds = list(KINDS)
    data = {
        "points": np.round(projection.points, 6).tolist(),
        "labels": list(labels),
        "counts": counts.tolist(),
        "kinds": [kinds.index(kind_of(text)) for text in texts],
        "colours": list(KINDS.values()),
        "kind_names": kinds,
    }
    shares = [f"{share:.1%}" for share in projection.explained]
    body = (
        facts(
            {
                "tokens": f"{len(labels):,}",
                "variance along the first axis": shares[0],
                "along the second": shares[1],
            }
        )
        + "<p>Principal components of the token embeddings: of all planes this one shows the most of "
        "their variance, and hides the rest. A large dot is a common token; rings never occur "
        "in the training text. Wheel: zoom; drag: move; double click: back.</p>"
        '<p><input type="search" placeholder="find a token" aria-label="find a token"> '
        '<span id="found"></span></p><div class="legend" id="kinds"></div>'
        '<canvas class="plot" id="plane"></canvas>'
    )
    return make_page(title, body, "embeddings.js", data, height=900)


def plot_embeddings(
    projection: Projection, texts: Sequence[str], labels: Sequence[str], counts: Counts, title: str
) -> Figure:
    """Takes the arguments of `embeddings_page`; labels the most frequent tokens where there is room."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 8), layout="constrained")
    axes = figure.add_subplot()
    kinds = np.array([kind_of(text) for text in texts])
    sizes = 8 + 5 * np.log1p(counts)
    for kind, colour in KINDS.items():
        shown = (kinds == kind) & (counts > 0)
        if shown.any():
            x, y = projection.points[shown].T
            axes.scatter(x, y, sizes[shown], color=colour, alpha=0.55, linewidths=0, label=kind)
    if (never := counts == 0).any():
        x, y = projection.points[never].T
        axes.scatter(
            x, y, 12, facecolors="none", edgecolors="#999999", linewidths=0.7, label="never trained"
        )
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_xlabel(f"first component ({projection.explained[0]:.1%} of the variance)")
    axes.set_ylabel(f"second component ({projection.explained[1]:.1%})")
    axes.set_title(title.replace("$", r"\$"), fontsize=11)
    axes.grid(True, alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="best")
    figure.draw_without_rendering()  # computes the layout, needed to find overlaps
    _name_points(figure, projection, labels, counts)
    return figure


def _name_points(
    figure: Figure, projection: Projection, labels: Sequence[str], counts: Counts
) -> None:
    """Place labels without overlap, most frequent tokens first."""
    axes = figure.axes[0]
    taken: list[tuple[float, float, float, float]] = []
    places = axes.transData.transform(projection.points)
    named = 0
    for index in np.argsort(-counts, kind="stable"):
        if named == _NAMED or counts[index] == 0:
            break
        x, y = places[index] + 4
        width, height = 6.0 * len(labels[index]) + 2, 11.0  # pixels at the figure's resolution
        box = (x, y, x + width, y + height)
        if any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
            continue
        taken.append(box)
        named += 1
        axes.annotate(
            labels[index].replace("$", r"\$"),
            projection.points[index],
            xytext=(3, 3),
            textcoords="offset points",
            fontsize=7,
            family="monospace",
        )
