"""Sample from a trained run: streamed text up to a stop string, once or interactively."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

import torch

from common.data.tokenizers import Tokenizer
from common.errors import DataError, UsageError
from common.generation.text import stream_text
from common.models.masked_decoder import MaskedDecoder
from common.terminal import printable, show
from common.training.trained_run import TrainedRun


def check_unmasking(run: TrainedRun, options: dict[str, Any]) -> dict[str, Any]:
    """The options of a masked diffusion model, with the suffix encoded.

    Raises UsageError if the model is another one.
    """
    if not options or isinstance(run.model, MaskedDecoder):
        if suffix := options.get("suffix"):
            ids = run.text.tokenizer.encode(suffix)
            return {**options, "suffix": torch.tensor([[int(i) for i in ids]])}
        return {key: value for key, value in options.items() if key != "suffix"}
    names = ", ".join(f"--{name.replace('_', '-')}" for name in options)
    raise UsageError(
        f"{names} is for masked diffusion models, and '{run.name}' predicts the next token",
        "train one with projects/diffusion/train.py",
    )


def sample_run(
    run: TrainedRun,
    *,
    prompt: str,
    num_samples: int,
    seed: int,
    **options: Any,
) -> None:
    """Print `num_samples` continuations as they are generated, with seeds `seed`, `seed + 1`, ...

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
    """Print each piece at once, then end the line, also on Ctrl-C; return the text."""
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

    The model reads all previous text, starting with `prompt`, with a line end before each new line.
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
        except DataError as error:  # a typo must not end the session
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
    """Yield the lines of standard input; on a terminal with line editing and history."""
    at_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if at_terminal:
        print("Type a line to continue it. /reset clears the context, Ctrl-D exits.")
        with suppress(ImportError):  # missing on Windows, whose terminal edits lines itself
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
