"""Export for Google's Learning Interpretability Tool (Tenney et al. 2020, "The Language
Interpretability Tool"): examples with a model's predictions, and a script that shows them.

The tool's requirements conflict with this project's, so it runs in a separate environment and reads
plain files; the model is not needed there.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from apps.analysis.embeddings import embedding_table
from apps.analysis.surprisal import Surprisal, measure_surprisal
from apps.analysis.tokens import label, shown, vocabulary_texts
from common.data.token_files import Tokens
from common.data.tokenizers import Tokenizer
from common.errors import ConfigError, DataError, ModelError
from common.models.base import BaseLanguageModel
from common.training.prediction_metrics import Counts
from common.utils.files import write_json_atomic, write_text_atomic

_SCRIPT = Path(__file__).parent / "static" / "run_lit.py"
_README = """# {title}

{count} pieces of text with what the model predicts of every token.

    uv run run_lit.py

shows them in the Learning Interpretability Tool on http://127.0.0.1:5432. uv reads at the top of the
script what it needs and makes an environment for it, on Python 3.10 to 3.12. With pip:

    python3.11 -m venv lit && lit/bin/pip install lit-nlp==1.3.1 && lit/bin/python run_lit.py

| file | |
|---|---|
| `examples.jsonl` | a line per example: `id`, `text`, `bits_per_token`, `tokens`, `surprisal_bits` (null for the first token, which nothing predicts), `expected` (pairs of token and probability){embedding} |
| `tokens.csv` | the same as a row per token, for a spreadsheet |
| `about.json` | the experiment, its checkpoint, and how the examples were cut |

In `tokens` a space is written as ␣, a line end as ↵ and a tab as ⇥. The icons of the tool are letters of a
font from the web: without a network their names are shown instead.
"""


def write_lit_folder(
    folder: Path,
    model: BaseLanguageModel,
    tokenizer: Tokenizer,
    tokens: Tokens,
    *,
    context_length: int,
    num_examples: int,
    title: str,
    about: dict[str, Any],
) -> tuple[int, str | None]:
    """Write examples.jsonl, tokens.csv, about.json, README.md and run_lit.py.

    Args:
        tokens: a text, (tokens,) ids; examples are its documents, in pieces of `context_length`.
        num_examples: maximum number of examples, spread over the text.
        about: further entries of about.json.
    Returns: (number of examples, reason for missing embeddings or None).
    Raises ConfigError if the folder is not empty, DataError if no piece has two tokens.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} already exists and is not empty", "choose a new folder")
    pieces = cut_pieces(tokens, tokenizer.end_of_text, context_length)
    if not pieces:
        raise DataError("no piece of the text has two tokens: nothing to predict")
    chosen = np.unique(np.linspace(0, len(pieces) - 1, num_examples).astype(int))
    words = [label(text, index) for index, text in enumerate(vocabulary_texts(tokenizer))]
    try:
        table, reason = embedding_table(model), None
    except ModelError as error:
        table, reason = None, error.message
    records = []
    found = []
    token_bytes = tokenizer.token_bytes
    for number, piece in enumerate(chosen):
        ids = pieces[piece].astype(np.int64)
        measured = measure_surprisal(model, ids, token_bytes=token_bytes, context_length=len(ids))
        record: dict[str, Any] = {
            "id": f"{number:04d}",
            "text": shown(tokenizer.decode(ids.tolist())),
        }
        record |= _record(measured, words)
        if table is not None:
            record["embedding"] = [round(float(x), 6) for x in table[ids].mean(axis=0)]
        records.append(record)
        found.append(measured)
    lines = [json.dumps(record, ensure_ascii=False, allow_nan=False) for record in records]
    write_text_atomic(folder / "examples.jsonl", "\n".join(lines) + "\n")
    write_text_atomic(folder / "tokens.csv", _csv(found, words))
    cut = {"context_length": context_length, "examples": len(records), "pieces": len(pieces)}
    write_json_atomic(folder / "about.json", {"title": title, **about, **cut})
    embedding = "" if table is None else ", `embedding` (mean of the embeddings of its tokens)"
    readme = _README.format(title=title, count=len(records), embedding=embedding)
    write_text_atomic(folder / "README.md", readme)
    write_text_atomic(folder / "run_lit.py", _SCRIPT.read_text(encoding="utf-8"))
    return len(records), reason


def cut_pieces(tokens: Tokens, end_of_text: int, context_length: int) -> list[Tokens]:
    """Documents in pieces of at most `context_length` tokens, and at least two.

    A document starts with the end-of-text token of the one before it, as in training.
    """
    borders = np.flatnonzero(np.asarray(tokens) == end_of_text)
    edges = [0, *borders[borders > 0].tolist(), len(tokens)]
    pieces = []
    for start, end in pairwise(edges):
        for first in range(start, end - 1, context_length):
            piece = tokens[first : min(first + context_length, end)]
            if len(piece) >= 2:
                pieces.append(piece)
    return pieces


def _record(found: Surprisal, words: list[str]) -> dict[str, Any]:
    bits = found.bits[1:]
    return {
        "bits_per_token": float(bits.mean()),
        "tokens": [words[i] for i in found.ids],
        "surprisal_bits": [None, *bits.tolist()],
        "expected": [[], *(list(map(list, row)) for row in _expected(found, words))],
    }


def _expected(found: Surprisal, words: list[str]) -> Iterator[list[tuple[str, float]]]:
    """For each predicted token, the most likely ones with their probabilities."""
    for ids, probabilities in zip(found.top_ids[1:], found.top_probabilities[1:], strict=True):
        yield [(words[i], float(p)) for i, p in zip(ids, probabilities, strict=True)]


def _csv(found: list[Surprisal], words: list[str]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["example", "position", "token", "bits", "rank", "expected", "probability"])
    for number, measured in enumerate(found):
        best: Counts = measured.top_ids[:, 0]
        for position, index in enumerate(measured.ids):
            row: list[object] = [f"{number:04d}", position, words[index]]
            if position == 0:
                row += [""] * 4
            else:
                row += [measured.bits[position], measured.ranks[position] + 1]
                row += [words[best[position]], measured.top_probabilities[position, 0]]
            writer.writerow(row)
    return buffer.getvalue()
