"""Stream generated text up to a stop string."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch

from common.data.tokenizers import Tokenizer


class StreamingModel(Protocol):
    """A model that generates text, as every BaseLanguageModel."""

    @property
    def stream(self) -> Callable[..., Iterator[torch.Tensor]]: ...


def stream_text(
    model: StreamingModel,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    stop: Sequence[str] = (),
    **options: Any,
) -> Iterator[str]:
    """Yield the continuation of `prompt` in pieces, each as soon as it is certain.

    It ends at `<|endoftext|>`, before the first match of a string in `stop`, or after
    `max_new_tokens`; `options` are those of `model.stream`. An empty prompt starts a new
    document.
    Raises DataError for a prompt that the tokenizer cannot encode.
    """
    ids = prompt_ids(tokenizer, prompt)
    drawn = (int(token) for token in model.stream(torch.tensor([ids]), **options))
    return until_stop(decode_stream(tokenizer, ids, drawn), stop)


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Encode the prompt; an empty one becomes the end-of-text token, which starts a new document."""
    end = getattr(tokenizer, "end_of_text", None)
    return [int(i) for i in tokenizer.encode(prompt)] or [0 if end is None else end]


def decode_stream(tokenizer: Tokenizer, before: list[int], drawn: Iterable[int]) -> Iterator[str]:
    """Yield the text of each token of `drawn` up to `<|endoftext|>`; multi-token characters come whole.

    The text of a token may depend on earlier ones (a leading space, parts of a character), so it is
    decoded together with the tokens of the last piece, at first with `before`.
    """
    known, new = before, list[int]()
    end = getattr(tokenizer, "end_of_text", None)
    for token in drawn:
        if token == end:
            break
        new.append(token)
        piece = tokenizer.decode(known + new)[len(tokenizer.decode(known)) :]
        if piece and piece[-1] != "\ufffd":  # stands for an incomplete character
            yield piece
            known, new = new, []
    if new:
        yield tokenizer.decode(known + new)[len(tokenizer.decode(known)) :]


def until_stop(pieces: Iterable[str], stop: Sequence[str]) -> Iterator[str]:
    """Yield `pieces` up to the first complete stop string, independent of piece boundaries.

    A possible start of a stop string is held back until it is certain.
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
    """Length of the longest suffix of `text` that is a prefix of `stop`."""
    lengths = range(min(len(text), len(stop) - 1), 0, -1)
    return next((n for n in lengths if text.endswith(stop[:n])), 0)
