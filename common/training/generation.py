"""A trained run writes: text as it is drawn, up to a stop string, once or in answer to every line."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch

from common.data.tokenizers import Tokenizer
from common.errors import DataError
from common.models.base import BaseLanguageModel
from common.training.trained_run import TrainedRun
from common.utils.terminal import printable, show


def stream_text(
    model: BaseLanguageModel,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    stop: Sequence[str] = (),
    **options: Any,
) -> Iterator[str]:
    """Yield the continuation of `prompt` piece by piece, as early as each piece is certain.

    It ends at `<|endoftext|>`, before the first of the texts in `stop`, or after `max_new_tokens`;
    `options` are those of `BaseLanguageModel.stream`. An empty prompt begins a new document.
    Raises DataError for a prompt that the tokenizer cannot encode.
    """
    ids = [int(i) for i in tokenizer.encode(prompt)] or [tokenizer.end_of_text]
    drawn = (int(token) for token in model.stream(torch.tensor([ids]), **options))
    return until_stop(decode_stream(tokenizer, ids, drawn), stop)


def decode_stream(tokenizer: Tokenizer, before: list[int], drawn: Iterable[int]) -> Iterator[str]:
    """The text of each token of `drawn` up to `<|endoftext|>`; a character of several comes whole.

    What a token writes may depend on those before it (a space at the beginning, parts of a
    character), so it is decoded together with the tokens of the last piece, at first with `before`.
    """
    known, new = before, list[int]()
    for token in drawn:
        if token == tokenizer.end_of_text:
            break
        new.append(token)
        piece = tokenizer.decode(known + new)[len(tokenizer.decode(known)) :]
        if piece and not piece.endswith(
            "\ufffd"
        ):  # which stands for bytes that are no character yet
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


def sample_run(
    run: TrainedRun,
    *,
    prompt: str,
    num_samples: int,
    seed: int,
    **options: Any,
) -> None:
    """Print `num_samples` continuations as they are drawn, with seeds `seed`, `seed + 1`, ...

    `options` are those of `stream_text`.
    """
    model, tokenizer = run.model, run.text.tokenizer
    for number in range(num_samples):
        pieces = stream_text(model, tokenizer, prompt, seed=seed + number, **options)
        if num_samples > 1:
            print(f"--- sample {number + 1} (seed {seed + number}) ---")
        show(prompt, end="")
        _print_all(pieces)


def _print_all(pieces: Iterable[str]) -> str:
    """Show every piece at once, then end the line, also where Ctrl-C ends it; return the text."""
    text = ""
    try:
        for piece in pieces:
            show(piece, end="")
            text += piece
    finally:
        print(flush=True)
    return text


def converse(
    run: TrainedRun,
    *,
    prompt: str,
    seed: int,
    **options: Any,
) -> None:
    """Continue every line of standard input until it ends; `options` are those of `stream_text`.

    The model reads all that was written before, `prompt` at first, a line end before each new line.
    The n-th continuation has the seed `seed + n`.
    """
    model, tokenizer = run.model, run.text.tokenizer
    line_end = "\n" if _knows(tokenizer, "\n") else ""
    text = prompt
    for number, line in enumerate(_typed_lines()):
        if line == "/reset":
            text = prompt
            continue
        asked = f"{text}{line_end if text and not text.endswith(line_end) else ''}{line}"
        try:
            pieces = stream_text(model, tokenizer, asked, seed=seed + number, **options)
        except DataError as error:  # a typing mistake must not end the conversation
            print(printable(f"error [{error.code}]: {error.message}"), file=sys.stderr)
            continue
        text = asked + _print_all(pieces)


def _knows(tokenizer: Tokenizer, text: str) -> bool:
    try:
        tokenizer.encode(text)
    except DataError:
        return False
    return True


def _typed_lines() -> Iterator[str]:
    """The lines of standard input; at a terminal they can be edited and called up again."""
    at_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if at_terminal:
        print("Every line is continued. /reset forgets what was written, Ctrl-D ends.")
        with suppress(ImportError):  # Windows has none; its terminal edits lines by itself
            import readline  # noqa: F401  # input() uses it from then on
    while True:
        try:
            yield input("> " if at_terminal else "")
        except EOFError:
            if at_terminal:
                print()
            return
        except UnicodeDecodeError as error:
            raise DataError("standard input is not UTF-8 text") from error
