"""Sample from a trained run: streamed text up to a stop string, once or interactively."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain
from typing import Any

import torch

from common.data.tokenizers import Tokenizer
from common.errors import DataError, UsageError
from common.generation.text import prompt_ids, stream_text
from common.generation.unmasking import Unmasking, unmask
from common.models.masked_decoder import MaskedDecoder
from common.terminal import printable, show
from common.training.trained_run import TrainedRun


def check_unmasking(run: TrainedRun, options: dict[str, Any]) -> dict[str, Any]:
    """The options of generation by unmasking, with `suffix` as tokens.

    Raises UsageError if there are any and the model predicts the next token.
    """
    if options and not isinstance(run.model, MaskedDecoder):
        names = ", ".join(f"--{name.replace('_', '-')}" for name in options)
        raise UsageError(
            f"{names} is for masked diffusion models, and '{run.name}' predicts the next token",
            "train one with projects/diffusion/train.py",
        )
    suffix = options.get("suffix")
    if suffix is None:
        return options
    ids = run.text.tokenizer.encode(suffix)
    return {**options, "suffix": torch.tensor([[int(i) for i in ids]], dtype=torch.int64)}


def trace_unmasking(
    run: TrainedRun, prompt: str, *, max_new_tokens: int, suffix: str = "", **options: Any
) -> Unmasking:
    """Fill in `max_new_tokens` between `prompt` and `suffix`; `options` are those of `unmask`.

    Raises UsageError if the model predicts the next token.
    """
    if not isinstance(run.model, MaskedDecoder):
        raise UsageError(
            f"'{run.name}' predicts the next token: it writes from left to right",
            "train a masked diffusion model with projects/diffusion/train.py",
        )
    masks = [run.model.mask_token] * max_new_tokens
    after = [int(i) for i in run.text.tokenizer.encode(suffix)]
    tokens = torch.tensor([prompt_ids(run.text.tokenizer, prompt) + masks + after])
    return unmask(run.model, tokens, **options)


def sample_run(
    run: TrainedRun,
    *,
    prompt: str,
    num_samples: int,
    seed: int,
    **options: Any,
) -> None:
    """Print `num_samples` continuations as they are generated, with seeds `seed`, `seed + 1`, ...

    `options` are those of `stream_text`; a `suffix` follows each continuation.
    """
    model, tokenizer = run.model, run.text.tokenizer
    suffix = tokenizer.decode(options["suffix"][0].tolist()) if "suffix" in options else ""
    for number in range(num_samples):
        pieces = stream_text(model, tokenizer, prompt, seed=seed + number, **options)
        if num_samples > 1:
            print(f"--- sample {number + 1} (seed {seed + number}) ---")
        show(prompt, end="")
        _print_all(chain(pieces, [suffix]))


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
