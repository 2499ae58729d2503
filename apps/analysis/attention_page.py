"""Attention maps as an interactive page, and as a figure of all heads."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from apps.analysis.attention import AttentionMaps, HeadStatistics
from apps.analysis.page import Page, make_page
from common.errors import DataError
from common.utils.tables import format_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_WEIGHTS = 2**24  # per page, 2 bytes each
_LABELLED = 40  # tokens; more labels do not fit beside the map of a head in the figure


def attention_page(maps: AttentionMaps, labels: Sequence[str], title: str) -> Page:
    """Create a page with thumbnails of all heads, and the selected one enlarged with its tokens.

    Weights are rounded to 1/65535. Raises DataError if there are too many for a page.
    """
    count = sum(layer.size for layer in maps.weights)
    if count > _MOST_WEIGHTS:
        raise DataError(
            f"{count:,} weights are too many for a page (limit {_MOST_WEIGHTS:,})",
            "use a shorter prompt, or an --output that ends in .png",
        )
    data = {
        "labels": list(labels),
        "layers": [[_packed(head) for head in layer] for layer in maps.weights],
        "statistics": [[round(value, 6) for value in row] for row in maps.statistics()],
    }
    body = (
        "<p>Row: the token that looks. Column: the token it looks at, at or before it. Every row "
        "sums to 1. Click a head to enlarge it, hover a cell or a token; colours grow with the "
        "square root of the weight.</p>"
        '<div class="columns"><div><h2>heads</h2><div class="heads"></div>'
        '<div class="legend"><span>weight</span><span>0</span>'
        '<canvas class="ramp" width="160" height="12"></canvas><span>1</span></div></div>'
        '<div><h2 id="chosen"></h2><canvas class="plot" id="map"></canvas>'
        '<div id="numbers"></div></div></div>'
        '<h2>what the token under the pointer looks at</h2><div class="text"></div>'
    )
    return make_page(title, body, "attention.js", data, height=900)


def _packed(weights: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> str:
    """Base64 of little-endian uint16, row by row."""
    return base64.b64encode(np.rint(weights * 65535).astype("<u2").tobytes()).decode()


def statistics_table(maps: AttentionMaps, style: str = "table") -> str:
    """Format `AttentionMaps.statistics` for a terminal."""
    return format_rows(HeadStatistics._fields, maps.statistics(), style)


def plot_attention(maps: AttentionMaps, labels: Sequence[str], title: str) -> Figure:
    """Plot a grid of all heads, a row per layer, as a matplotlib Figure."""
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    rows, columns = len(maps.weights), max(len(layer) for layer in maps.weights)
    time = len(labels)
    labelled = time <= _LABELLED
    side = max(1.7, 0.13 * time) if labelled else 2.4  # inches
    margin = 1.1 if labelled else 0.4
    size = (margin + side * columns + 0.9, margin + side * rows + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for row in axes:
        for empty in row:
            empty.set_axis_off()
    safe = [text.replace("$", r"\$") for text in labels]
    norm = PowerNorm(0.5, 0, 1)
    for layer, weights in enumerate(maps.weights):
        for head, w in enumerate(weights):
            cell = axes[layer, head]
            cell.set_axis_on()
            shown = np.ma.masked_where(np.triu(np.ones_like(w, dtype=bool), 1), w)
            image = cell.imshow(shown, cmap="magma_r", norm=norm, interpolation="nearest")
            cell.set_title(f"layer {layer}, head {head}", fontsize=8)
            cell.set_xticks(range(time) if labelled and layer == rows - 1 else [])
            cell.set_yticks(range(time) if labelled and head == 0 else [])
            if labelled and layer == rows - 1:
                cell.set_xticklabels(safe, rotation=90, fontsize=6, family="monospace")
            if labelled and head == 0:
                cell.set_yticklabels(safe, fontsize=6, family="monospace")
            cell.tick_params(length=0)
            for spine in cell.spines.values():
                spine.set_color("#c8ccd2")
    bar = figure.colorbar(image, ax=axes, shrink=0.5, pad=0.02, ticks=[0, 0.05, 0.2, 0.5, 1])
    bar.set_label("weight (square root scale)", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    figure.suptitle(title.replace("$", r"\$"), fontsize=10)
    return figure
