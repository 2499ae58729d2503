"""How well a trained run writes and fills in texts: the share that is grammatical, and in brackets the share whose
repeated names and things match too. The grammars of common/data decide it, not another model."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING, Any

from common.errors import UsageError, exit_on_error

if TYPE_CHECKING:
    import torch

    from common.data.grammar import Grammar
    from common.training.trained_run import TrainedRun

ORDERS: dict[str, dict[str, Any]] = {
    "confidence": {"order": "confidence"},
    "random": {"order": "random"},
    "left to right": {"order": "left_to_right"},
    "blocks of 16": {"order": "confidence", "block_size": 16},
}
GAP = 16  # tokens to fill in


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python projects/diffusion/quality.py --name stories_001 --steps 8,128",
    )
    parser.add_argument("--name", required=True, metavar="RUN")
    parser.add_argument("--checkpoint", default="best", help="best, last or a step (default best)")
    parser.add_argument("--samples", type=int, default=64, metavar="N", help="(default 64)")
    parser.add_argument("--steps", default="8,32,128", metavar="N,...", help="of writing")
    parser.add_argument("--temperature", type=float, default=1.0, help="(default 1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--format", choices=("table", "markdown", "csv"), default="table")
    arguments = parser.parse_args()
    if arguments.samples < 1:
        raise UsageError(f"--samples must be at least 1, got {arguments.samples}")
    if not all(step.isdecimal() and int(step) > 0 for step in arguments.steps.split(",")):
        raise UsageError(f"--steps takes numbers such as 8,16,32, got {arguments.steps}")
    from common.training.trained_run import load_run

    run = load_run(arguments.name, arguments.checkpoint)
    from common.utils.tables import format_rows

    sampling = {"temperature": arguments.temperature, "seed": arguments.seed}
    steps = [int(step) for step in arguments.steps.split(",")]
    for table in (  # computed one by one
        lambda: infilling_table(run, arguments.samples, sampling),
        lambda: writing_table(run, steps, arguments.samples, sampling),
    ):
        rows = table()
        print(format_rows(rows[0], rows[1:], arguments.format), end="\n\n", flush=True)


def grammar_of(run: TrainedRun) -> Grammar:
    """The grammar of the run's text. Raises UsageError if the text has none."""
    from common.data import speeches, stories

    grammars = {"stories": stories.GRAMMAR, "speeches": speeches.GRAMMAR}
    if run.config.data.path is not None or run.config.data.dataset not in grammars:
        raise UsageError(
            f"'{run.name}' was not trained on a text with a grammar",
            "train with data.dataset=stories or data.dataset=speeches",
        )
    return grammars[run.config.data.dataset]


def writing_table(
    run: TrainedRun, steps: list[int], count: int, sampling: dict[str, Any]
) -> list[list[str]]:
    """Of `count` texts begun from nothing: the share that is grammatical, by order and number of steps."""
    import torch

    from common.models.masked_decoder import MaskedDecoder

    start = torch.tensor([[run.text.tokenizer.end_of_text]])
    length = run.config.context_length - 1

    def share(**options: Any) -> str:
        rows = run.model.generate(start, length, num_sequences=count, **sampling, **options)
        return _shares([_first_text(run, row.tolist()[1:]) for row in rows], grammar_of(run))

    if not isinstance(run.model, MaskedDecoder):
        return [["order", f"{length} steps"], ["next token", share()]]
    return [["order", *(f"{number} steps" for number in steps)]] + [
        [name, *(share(steps=number, **options) for number in steps)]
        for name, options in ORDERS.items()
    ]


def _first_text(run: TrainedRun, tokens: list[int]) -> str | None:
    """The text before the first end-of-text token; None if there is none."""
    end = run.text.tokenizer.end_of_text
    return run.text.tokenizer.decode(tokens[: tokens.index(end)]) if end in tokens else None


def _shares(texts: list[str | None], grammar: Grammar) -> str:
    """The share of grammatical texts, and in brackets that of texts whose repeated words match too."""
    free = grammar.without_memory()
    found = [text for text in texts if text is not None]
    grammatical = sum(free.surprisal(text) < math.inf for text in found) / len(texts)
    matching = sum(grammar.surprisal(text) < math.inf for text in found) / len(texts)
    return f"{grammatical:.0%} ({matching:.0%})"


def infilling_table(run: TrainedRun, count: int, sampling: dict[str, Any]) -> list[list[str]]:
    """Of `count` validation texts, GAP tokens of the middle filled in: the share that is grammatical, with
    what follows the gap and without it."""
    import torch

    from common.models.masked_decoder import MaskedDecoder

    windows, gaps = _gaps(run, count)

    def share(sees_suffix: bool) -> str:
        texts: list[str | None] = []
        for index, (window, first) in enumerate(zip(windows, gaps, strict=True)):
            prefix, suffix = window[None, :first], window[None, first + GAP :]
            options = {**sampling, "seed": sampling["seed"] + index}
            if sees_suffix:
                options["suffix"] = suffix
            written = run.model.generate(prefix, GAP, **options)[:, first : first + GAP]
            filled = torch.cat([prefix, written, suffix], dim=1)[0]
            texts.append(_first_text(run, filled.tolist()[1:]))
        return _shares(texts, grammar_of(run))

    rows = [["context", f"{GAP} tokens filled in"], ["prefix only", share(False)]]
    if isinstance(run.model, MaskedDecoder):
        rows.append(["prefix and suffix", share(True)])
    return rows


def _gaps(run: TrainedRun, count: int) -> tuple[torch.Tensor, list[int]]:
    """Windows (rows, time) of the validation tokens that begin with a whole text, and where the GAP tokens in
    the middle of each begin; `count` rows, or as many as there are.

    Texts shorter than twice GAP, and longer than the window, are left out.
    """
    import numpy as np
    import torch

    tokens, time = run.text.tokens("val"), run.config.context_length
    borders = np.flatnonzero(tokens == run.text.tokenizer.end_of_text)
    sizes = np.diff(borders) - 1
    fits = (sizes >= 2 * GAP) & (sizes + 2 <= time) & (borders[:-1] + time <= len(tokens))
    starts, sizes = borders[:-1][fits][:count], sizes[fits][:count]
    if not len(starts):
        raise UsageError(
            f"no validation text has {2 * GAP} to {time - 2} tokens, the window of '{run.name}'"
        )
    windows = torch.from_numpy(tokens[starts[:, None] + np.arange(time)].astype(np.int64))
    return windows, (1 + (sizes - GAP) // 2).tolist()


if __name__ == "__main__":
    with exit_on_error():
        main()
