"""The order in which a masked diffusion model fills in a text, as a page and as a figure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from apps.analysis.page import Page, facts, make_page
from apps.analysis.text import text_html
from apps.analysis.tokens import label, vocabulary_texts
from common.data.tokenizers import Tokenizer
from common.generation.unmasking import Unmasking
from common.visualization.labels import plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = 8  # of page.css
_MOST_WORDS = 100  # tokens that fit below a figure


def unmasking_page(found: Unmasking, tokenizer: Tokenizer, title: str) -> Page:
    """Create the page of the first row: its text coloured by step, and a slider over the steps."""
    ids, steps, confidence = (x[0].tolist() for x in (found.tokens, found.steps, found.confidence))
    words = vocabulary_texts(tokenizer)
    last = max(steps)
    classes = ["given" if step < 0 else f"b{1 + _COLOURS * step // (last + 1)}" for step in steps]
    data = {
        "labels": [label(words[i], i) for i in ids],
        "steps": steps,
        "confidence": [None if step < 0 else p for step, p in zip(steps, confidence, strict=True)],
    }
    body = f"{facts(summary(found))}{_SLIDER.format(last=last)}{text_html(tokenizer, ids, words, classes)}"
    return make_page(title, body, "unmasking.js", data)


_SLIDER = (
    '<p><label>step <input type="range" id="step" min="-1" max="{last}" value="{last}"> '
    '<output id="shown"></output></label></p><div class="legend"><span>colour: from the first step, '
    'light, to the last</span><span><span class="given">&nbsp;given&nbsp;</span> prompt and suffix</span>'
    "<span>hover, tap, or <kbd>&larr;</kbd> <kbd>&rarr;</kbd></span></div>"
)


def summary(found: Unmasking) -> dict[str, str]:
    """The numbers of the first row."""
    steps, confidence = found.steps[0].cpu().numpy(), found.confidence[0].cpu().numpy()
    filled = steps >= 0
    places = np.flatnonzero(filled)
    order = places[np.argsort(steps[filled], kind="stable")]
    neighbours = float((np.abs(np.diff(order)) == 1).mean()) if len(order) > 1 else 1.0
    return {
        "tokens filled in": f"{len(places):,}",
        "steps": f"{int(steps.max()) + 1:,}",
        "mean probability": f"{float(confidence[filled].mean()):.1%}" if len(places) else "none",
        "next to the one before": f"{neighbours:.1%}",
    }


def plot_unmasking(found: Unmasking, tokenizer: Tokenizer, title: str) -> Figure:
    """Plot the step of every token by its place, coloured by its probability; a short text is written below."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    ids, steps = found.tokens[0].tolist(), found.steps[0].cpu().numpy()
    confidence = found.confidence[0].cpu().numpy()
    places = np.flatnonzero(steps >= 0)
    figure = Figure(figsize=(10.0, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for start in np.flatnonzero(steps < 0):
        axes.axvspan(start - 0.5, start + 0.5, color="0.9", linewidth=0)
    points = axes.scatter(
        places, steps[places], c=confidence[places], cmap="viridis", vmin=0, vmax=1, s=18
    )
    axes.set_xlim(-0.5, len(ids) - 0.5)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    if len(ids) <= _MOST_WORDS:
        words = vocabulary_texts(tokenizer)
        labels = [plain(label(words[i], i)) for i in ids]
        axes.set_xticks(range(len(ids)), labels, rotation=90, fontsize=7)
    axes.set_xlabel("token (grey: given)")
    axes.set_ylabel("step")
    figure.colorbar(points, label="probability when filled in", pad=0.01)
    axes.set_title(title.replace("$", r"\$"), fontsize=10)
    return figure
