"""A page with text coloured by surprisal; hovering shows the expected tokens."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from apps.analysis.page import Page, facts, make_page
from apps.analysis.surprisal import Surprisal
from apps.analysis.text import text_html
from apps.analysis.tokens import label, vocabulary_texts
from common.data.tokenizers import Tokenizer
from common.errors import DataError
from common.utils.tables import format_rows

# Lower bounds of the colours in bits: 1 bit is probability 1/2, 12 bits are 1/4096.
EDGES = (0.5, 1, 2, 3, 4, 6, 8, 12)
_MOST_TOKENS = 50_000  # per page, for smooth scrolling
_MOST_SURPRISING = 10


def surprisal_page(found: Surprisal, tokenizer: Tokenizer, title: str) -> Page:
    """Create the page. Raises DataError if the text is too long."""
    if len(found.ids) > _MOST_TOKENS:
        raise DataError(
            f"the text has {len(found.ids):,} tokens, the limit of a page is {_MOST_TOKENS:,}",
            "use a shorter piece of it; evaluate.py --data takes text of any length",
        )
    words = vocabulary_texts(tokenizer)
    labels = [label(words[i], int(i)) for i in found.ids]
    used, compact = np.unique(found.top_ids[1:], return_inverse=True)
    data = {
        "words": [label(words[i], int(i)) for i in used],
        "tokens": [
            [name, None if math.isnan(bits) else round(float(bits), 6), int(rank), int(context)]
            for name, bits, rank, context in zip(
                labels, found.bits, found.ranks, found.context, strict=True
            )
        ],
        "alternatives": [
            [],
            *(
                [
                    [int(word), float(f"{p:.4g}"), int(top == target)]
                    for word, p, top in zip(row, probabilities, tops, strict=True)
                ]
                for row, probabilities, tops, target in zip(
                    compact.reshape(found.top_ids[1:].shape),
                    found.top_probabilities[1:],
                    found.top_ids[1:],
                    found.ids[1:],
                    strict=True,
                )
            ),
        ],
    }
    body = f"{facts(summary(found))}{_legend()}{_text(found, tokenizer, words)}"
    return make_page(title, body, "surprisal.js", data)


def summary(found: Surprisal) -> dict[str, str]:
    """Metrics of the whole text; loss and bits per byte agree with `Evaluator`."""
    per_byte = found.bits_per_byte
    return {
        "bits per byte": "none" if per_byte is None else f"{per_byte:.6f}",
        "bits per token": f"{found.loss / math.log(2):.4f}",
        "nats per token (loss)": f"{found.loss:.6f}",
        "perplexity": f"{found.perplexity:.4g}",
        "most likely token was right": f"{found.accuracy:.1%}",
        "predicted tokens": f"{len(found.ids) - 1:,}",
        "bytes": f"{found.num_bytes:,}",
    }


def most_surprising(found: Surprisal, tokenizer: Tokenizer, style: str = "table") -> str:
    """Format the tokens with the highest surprisal as a table for a terminal."""
    words = vocabulary_texts(tokenizer)
    order = 1 + np.argsort(-found.nats[1:], kind="stable")[:_MOST_SURPRISING]
    rows = [
        [
            int(i) + 1,
            label(words[found.ids[i]], int(found.ids[i])),
            float(found.bits[i]),
            int(found.ranks[i]) + 1,
            label(words[found.top_ids[i, 0]], int(found.top_ids[i, 0])),
            float(found.top_probabilities[i, 0]),
        ]
        for i in order
    ]
    columns = ["place", "token", "bits", "rank", "expected", "probability"]
    return format_rows(columns, rows, style)


def _legend() -> str:
    edges = [f"{edge:g}" for edge in EDGES]
    names = [f"&lt;{edges[0]}", *(f"{a}&ndash;{b}" for a, b in pairwise(edges)), f"&ge;{edges[-1]}"]
    items = "".join(f'<li class="b{i}">{name}</li>' for i, name in enumerate(names))
    return (
        f'<div class="legend"><span>surprisal in bits</span><ol>{items}</ol>'
        '<span><span class="given">&nbsp;first&nbsp;</span> not predicted</span>'
        "<span>dotted line: the context begins anew</span>"
        "<span>hover, tap, or <kbd>&larr;</kbd> <kbd>&rarr;</kbd></span></div>"
    )


def _text(found: Surprisal, tokenizer: Tokenizer, words: list[str]) -> str:
    classes = ["given", *(f"b{colour}" for colour in np.digitize(found.bits[1:], EDGES))]
    for index in range(2, len(classes)):
        if found.context[index] == 1:
            classes[index] += " again"
    return text_html(tokenizer, found.ids.tolist(), words, classes)
