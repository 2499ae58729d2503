"""Text as it is drawn, token by token, up to a stop string."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from common.data.tokenizers import Tokenizer
from common.generation.decoding import DecodableModel, stream


def stream_text(
    model: DecodableModel,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    stop: Sequence[str] = (),
    **options: Any,
) -> Iterator[str]:
    """Yield the continuation of `prompt` piece by piece, as early as each piece is certain.

    It ends at `<|endoftext|>`, before the first of the texts in `stop`, or after `max_new_tokens`;
    `options` are those of `stream` (decoding.py). An empty prompt begins a new document.
    Raises DataError for a prompt that the tokenizer cannot encode.
    """
    ids = prompt_ids(tokenizer, prompt)
    drawn = (int(token) for token in stream(model, torch.tensor([ids]), **options))
    return until_stop(decode_stream(tokenizer, ids, drawn), stop)


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The ids that the model continues: an empty prompt is the end of a text, which begins a new one."""
    end = getattr(tokenizer, "end_of_text", None)
    return [int(i) for i in tokenizer.encode(prompt)] or [0 if end is None else end]


def decode_stream(tokenizer: Tokenizer, before: list[int], drawn: Iterable[int]) -> Iterator[str]:
    """The text of each token of `drawn` up to `<|endoftext|>`; a character of several comes whole.

    What a token writes may depend on those before it (a space at the beginning, parts of a
    character), so it is decoded together with the tokens of the last piece, at first with `before`.
    """
    known, new = before, list[int]()
    end = getattr(tokenizer, "end_of_text", None)
    for token in drawn:
        if token == end:
            break
        new.append(token)
        piece = tokenizer.decode(known + new)[len(tokenizer.decode(known)) :]
        if piece and piece[-1] != "\ufffd":  # which stands for bytes that are no character yet
            yield piece
            known, new = new, []
    if new:
        yield tokenizer.decode(known + new)[len(tokenizer.decode(known)) :]


def until_stop(pieces: Iterable[str], stop: Sequence[str]) -> Iterator[str]:
    """`pieces` up to the stop string that is complete first; how the text is cut makes no difference.

    What may be the beginning of a stop string is held back until it is certain that it is none.
    """
    held = ""
    for piece in pieces:
        held += piece
        found = [(held.find(text) + len(text), held.find(text)) for text in stop if text in held]
        if found:
            yield held[: min(found)[1]]
            return
        begun = max((_overlap(held, text) for text in stop), default=0)
        yield held[: len(held) - begun]
        held = held[len(held) - begun :]
    yield held


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that `stop` begins with."""
    lengths = range(min(len(text), len(stop) - 1), 0, -1)
    return next((n for n in lengths if text.endswith(stop[:n])), 0)
