"""The routing of a text as a page coloured by expert, and as a figure of the loads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.analysis.embeddings_page import KINDS, kind_of
from apps.analysis.page import Page, facts, make_page
from apps.analysis.routing import LayerRouting, LoadStatistics, Routing
from apps.analysis.text import text_html
from apps.analysis.tokens import label, vocabulary_texts
from common.data.tokenizers import Tokenizer
from common.errors import DataError
from common.training.prediction_metrics import Counts
from common.utils.tables import format_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_TOKENS = 50_000  # per page, for smooth scrolling
_MOST_ROUTES = 2**20  # per page: tokens x layers x top_k
_TOP_TOKENS = 12  # of each expert


def routing_page(routing: Routing, tokenizer: Tokenizer, title: str) -> Page:
    """Create the page. Raises DataError if the text is too long."""
    routes = sum(layer.experts.size for layer in routing.layers)
    if len(routing.ids) > _MOST_TOKENS or routes > _MOST_ROUTES:
        raise DataError(
            f"{len(routing.ids):,} tokens with {routes:,} routes are too many for a page "
            f"(limits {_MOST_TOKENS:,} and {_MOST_ROUTES:,})",
            "use a shorter text, or an --output that ends in .png",
        )
    words = vocabulary_texts(tokenizer)
    used, places = np.unique(routing.ids, return_inverse=True)
    kinds = list(KINDS)
    classes = np.array([kinds.index(kind_of(words[i])) for i in used])[places]
    data = {
        "words": [label(words[i], int(i)) for i in used],
        "tokens": places.tolist(),
        "counts": np.bincount(places).tolist(),
        "kinds": kinds,
        "kind_counts": np.bincount(classes, minlength=len(kinds)).tolist(),
        "layers": [_layer(layer, places, len(used), classes) for layer in routing.layers],
    }
    body = f"{facts(summary(routing))}{_BODY[0]}{text_html(tokenizer, routing.ids.tolist(), words)}{_BODY[1]}"
    return make_page(title, body, "routing.js", data, height=900)


_BODY = (
    "<h2>load of the experts</h2><p>Bars: tokens of each expert; dashed: the even load. Choose a layer, "
    "with <kbd>&uarr;</kbd> <kbd>&darr;</kbd> too.</p>"
    '<div class="choices" id="layers"></div><h2 id="chosen"></h2>'
    '<div class="choices" id="experts"></div><p>The colour of a token is the expert with its largest weight, '
    "stronger for a larger share. Hover a token, tap it, or use <kbd>&larr;</kbd> <kbd>&rarr;</kbd>; "
    "choose an expert to see its tokens alone.</p>",
    "<h2>experts and kinds of tokens</h2><p>Each cell: the share of the tokens of this kind that this expert "
    'receives. <span id="even"></span> Top tokens: how many of a token\'s occurrences the expert receives, '
    "by how far they exceed an even split.</p>"
    '<div class="wide" id="matrix"></div>',
)


def _layer(layer: LayerRouting, places: Counts, num_words: int, classes: Counts) -> dict[str, Any]:
    return {
        "experts": layer.experts.tolist(),
        "weights": np.round(layer.weights, 4).tolist(),
        "load": layer.load.tolist(),
        "statistics": layer.statistics()._asdict(),
        "matrix": layer.by_class(classes, len(KINDS)).tolist(),
        "top": top_tokens(layer, places, num_words),
    }


def top_tokens(layer: LayerRouting, places: Counts, num_words: int) -> list[list[list[int]]]:
    """[word, how often the expert received it], for each expert: the words it received most above an even
    split between all experts.

    Args:
        places: (tokens,) the word of each token, below `num_words`.
    """
    counts = layer.by_class(places, num_words)
    excess = counts - counts.sum(axis=0) / layer.num_experts
    order = np.argsort(-excess, axis=1, kind="stable")[:, :_TOP_TOKENS]
    return [
        [[int(word), int(mine[word])] for word in words if beyond[word] > 0]
        for mine, beyond, words in zip(counts, excess, order, strict=True)
    ]


def summary(routing: Routing) -> dict[str, str]:
    """The numbers of all layers together."""
    found = [layer.statistics() for layer in routing.layers]
    worst = max(found, key=lambda each: each.excess_load)
    return {
        "tokens": f"{len(routing.ids):,}",
        "layers with experts": str(len(found)),
        "experts per token": ", ".join(
            sorted({f"{each.top_k} of {each.experts}" for each in found})
        ),
        "largest excess load": f"{worst.excess_load:.2f} in layer {worst.layer}",
        "dead experts": str(sum(each.dead_experts for each in found)),
    }


def load_table(routing: Routing, style: str = "table") -> str:
    """Format `LayerRouting.statistics` for a terminal."""
    rows: Sequence[LoadStatistics] = [layer.statistics() for layer in routing.layers]
    return format_rows(LoadStatistics._fields, rows, style)


def plot_routing(routing: Routing, title: str) -> Figure:
    """Plot the load of every expert, a bar chart per layer, as a matplotlib Figure."""
    from matplotlib.figure import Figure

    columns = min(4, len(routing.layers))
    rows = -(-len(routing.layers) // columns)
    figure = Figure(figsize=(3.4 * columns + 0.4, 2.5 * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for empty in axes[len(routing.layers) :]:
        empty.set_axis_off()
    for chart, layer in zip(axes, routing.layers, strict=False):
        found = layer.statistics()
        chart.bar(np.arange(layer.num_experts), layer.load, color="#0072b2", width=0.8)
        chart.axhline(found.even_load, color="#d55e00", linestyle="--", linewidth=1, label="even")
        chart.set_title(
            f"layer {layer.layer}: excess {found.excess_load:.2f}, "
            f"{found.entropy_bits:.2f} bits, {found.dead_experts} dead",
            fontsize=8,
        )
        chart.set_xlabel("expert", fontsize=8)
        chart.set_ylabel("tokens", fontsize=8)
        chart.tick_params(labelsize=7)
        chart.set_ylim(top=1.2 * found.max_load)  # room for the legend
        chart.spines[["top", "right"]].set_visible(False)
        if layer.num_experts <= 16:
            chart.set_xticks(range(layer.num_experts))
    axes[0].legend(frameon=False, fontsize=7)
    figure.suptitle(title.replace("$", r"\$"), fontsize=10)
    return figure
