"""Generation by unmasking: a text of masks is filled in, some tokens at a time, in any order."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, Protocol

import torch

from common.errors import ModelError
from common.generation.sampling import check_sampling, sample_next
from common.utils.seeding import derive_seed

Order = Literal["confidence", "random", "left_to_right"]
ORDERS: tuple[Order, ...] = ("confidence", "random", "left_to_right")


class UnmaskingModel(Protocol):
    """What unmasking requires of a model; `MaskedDecoder` documents each member."""

    vocab_size: int
    training: bool

    @property
    def mask_token(self) -> int: ...

    @property
    def context_limit(self) -> int | None: ...

    @property
    def device(self) -> torch.device: ...

    def logits_at(self, input_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor: ...

    def eval(self) -> Any: ...

    def train(self, mode: bool = True) -> Any: ...


@dataclass
class Unmasking:
    """`tokens`: (batch, time) int64; `steps`: (batch, time) int64, the step that filled in each token,
    from 0, -1 for those that were given; `confidence`: (batch, time), the probability of each at that
    step, NaN for those that were given."""

    tokens: torch.Tensor
    steps: torch.Tensor
    confidence: torch.Tensor


@torch.no_grad()
def unmask(
    model: UnmaskingModel,
    tokens: torch.Tensor,
    *,
    steps: int | None = None,
    order: Order = "confidence",
    block_size: int | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
) -> Unmasking:
    """Fill in every `mask_token` of `tokens` (batch, time) int64, of which each row has as many.

    Args:
        steps: forward passes; None: one per token. Each fills in as equal a number as possible.
        order: what is filled in first: the places whose most likely token is the most probable (Kim et al.
            2025, "Train for the Worst, Plan for the Best"), random ones (as in training), or the first.
            Each order samples what the model predicts, one token at a time. The probability of the drawn
            token (MaskGIT, LLaDA) would not: rare tokens would always wait, and never come.
        block_size: the masks are filled in by blocks of so many, from left to right; None: at once.
        temperature: 0 takes the most likely token; `top_k` and `top_p` as in `sample_next`.
        seed: of the draws; None uses the global generator.
    """
    tokens = tokens.to(model.device).clone()
    masked = tokens == model.mask_token
    numbers = masked.sum(dim=1)
    count = int(numbers[0]) if len(numbers) else 0
    if bool((numbers != count).any()):
        raise ModelError("each row needs the same number of masks", f"there are {numbers.tolist()}")
    _check(model, tokens, steps, order, block_size)
    check_sampling(temperature, top_k, top_p)
    steps = count if steps is None else min(steps, count)
    generator = None
    if seed is not None:
        generator = torch.Generator(device=tokens.device).manual_seed(seed)
    result = Unmasking(
        tokens,
        torch.full_like(tokens, -1),
        torch.full(tokens.shape, math.nan, device=tokens.device),
    )
    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    was_training = model.training
    model.eval()
    try:
        schedule = _schedule(masked, count, steps, block_size or max(count, 1))
        for step, (open_masks, number) in enumerate(schedule):
            _fill_in(model, result, open_masks, number, step, order, sampling, generator)
    finally:
        model.train(was_training)
    return result


def _schedule(
    masked: torch.Tensor, count: int, steps: int, block_size: int
) -> Iterator[tuple[torch.Tensor, int]]:
    """The masks that a step may fill in, (batch, time) bool, and how many of each row it does."""
    ranks = masked.cumsum(dim=1) - 1
    borders = [min(first, count) for first in range(0, count + block_size, block_size)]
    done = 0
    for first, last in pairwise(borders):
        block = masked & (ranks >= first) & (ranks < last)
        of_block = max(1, round(steps * last / count) - done) if last > first else 0
        done += of_block
        for index in range(of_block):
            size = last - first
            number = size * (index + 1) // of_block - size * index // of_block
            if number:
                yield block, number


def _fill_in(
    model: UnmaskingModel,
    result: Unmasking,
    block: torch.Tensor,
    number: int,
    step: int,
    order: Order,
    sampling: dict[str, Any],
    generator: torch.Generator | None,
) -> None:
    """Fill in `number` masks of each row of `block`, in place."""
    tokens = result.tokens
    masked = (tokens == model.mask_token) & block
    logits = model.logits_at(tokens, masked)
    drawn = sample_next(logits, **sampling, generator=generator)
    probabilities = logits.float().softmax(dim=-1)
    confidence = torch.zeros(tokens.shape, device=tokens.device)
    confidence[masked] = probabilities.gather(1, drawn[:, None])[:, 0]
    if order == "confidence":
        score = torch.zeros_like(confidence)
        score[masked] = probabilities.amax(dim=-1)
    elif order == "random":
        score = torch.rand(tokens.shape, generator=generator, device=tokens.device)
    else:
        score = -torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens).float()
    chosen = score.masked_fill(~masked, -math.inf).topk(number, dim=1).indices
    candidates = tokens.masked_scatter(masked, drawn)
    tokens.scatter_(1, chosen, candidates.gather(1, chosen))
    result.steps.scatter_(1, chosen, step)
    result.confidence.scatter_(1, chosen, confidence.gather(1, chosen))


def _check(
    model: UnmaskingModel,
    tokens: torch.Tensor,
    steps: int | None,
    order: str,
    block_size: int | None,
) -> None:
    if tokens.ndim != 2 or tokens.numel() == 0:
        raise ModelError(f"tokens must have shape (batch, time), got {tuple(tokens.shape)}")
    if not 0 <= int(tokens.min()) <= int(tokens.max()) <= model.vocab_size:
        raise ModelError(f"token ids must be from 0 to {model.vocab_size}, which is the mask")
    _check_steps(steps)
    if order not in ORDERS:
        raise ModelError(f"there is no order '{order}'", f"there are {', '.join(ORDERS)}")
    if block_size is not None and block_size < 1:
        raise ModelError(f"block_size must be at least 1, got {block_size}")
    if model.context_limit and tokens.shape[1] > model.context_limit:
        raise ModelError(
            f"{tokens.shape[1]} tokens are more than the model's context of {model.context_limit}",
            "shorten the prompt or the suffix, or generate fewer tokens",
        )


def _check_steps(steps: int | None) -> None:
    if steps is not None and steps < 1:
        raise ModelError(f"steps must be at least 1, got {steps}")


def generate(
    model: UnmaskingModel,
    input_ids: torch.Tensor,
    max_new_tokens: int = 100,
    *,
    suffix: torch.Tensor | None = None,
    stop_tokens: Sequence[int] = (),
    num_sequences: int = 1,
    **options: Any,
) -> torch.Tensor:
    """Fill in `max_new_tokens` tokens after each row of `input_ids` (batch, time) int64.

    A text longer than the context is continued in pieces, unless there is a suffix.

    Args:
        suffix: (batch, time) int64, what follows them; None: nothing.
        stop_tokens: a row ends at the first of these, and is padded with that token.
        num_sequences: results per row, adjacent.
        options: those of `unmask`.
    Returns: (batch * num_sequences, time) int64, with inputs and suffix.
    """
    if num_sequences < 1:
        raise ModelError(f"num_sequences must be at least 1, got {num_sequences}")
    if max_new_tokens < 0:
        raise ModelError(f"max_new_tokens must not be negative, got {max_new_tokens}")
    rows = input_ids.to(model.device).repeat_interleave(num_sequences, dim=0)
    if suffix is not None:
        masks = rows.new_full((len(rows), max_new_tokens), model.mask_token)
        after = suffix.to(rows.device).repeat_interleave(num_sequences, dim=0)
        tokens = unmask(model, torch.cat([rows, masks, after], dim=1), **options).tokens
    else:
        tokens = _continued(model, rows, max_new_tokens, **options)
    start = input_ids.shape[1]
    for row in tokens if len(stop_tokens) and suffix is None else ():
        stops = torch.isin(row[start:], torch.tensor(list(stop_tokens), device=row.device))
        if bool(stops.any()):
            first = start + int(stops.int().argmax())
            row[first:] = row[first].clone()
    return tokens


def _continued(
    model: UnmaskingModel,
    rows: torch.Tensor,
    count: int,
    *,
    steps: int | None = None,
    seed: int | None = None,
    **options: Any,
) -> torch.Tensor:
    """Append `count` tokens, as many at once as the context holds beside half a context of text."""
    _check_steps(steps)
    end, first = rows.shape[1] + count, rows.shape[1]
    limit = model.context_limit or end
    while rows.shape[1] < end:
        size = min(end - rows.shape[1], limit - min(rows.shape[1], limit // 2))
        window = rows[:, max(0, rows.shape[1] - (limit - size)) :]
        masks = rows.new_full((len(rows), size), model.mask_token)
        found = unmask(
            model,
            torch.cat([window, masks], dim=1),
            steps=None if steps is None else max(1, round(steps * size / count)),
            seed=None if seed is None else derive_seed(seed, rows.shape[1] - first),
            **options,
        )
        rows = torch.cat([rows, found.tokens[:, window.shape[1] :]], dim=1)
    return rows


def stream(
    model: UnmaskingModel, input_ids: torch.Tensor, max_new_tokens: int, **options: Any
) -> Iterator[torch.Tensor]:
    """Yield one (batch,) int64 tensor per new token: all at the end, since they come in no order.

    `options` are those of `generate`.
    """
    new = generate(model, input_ids, max_new_tokens, **options)[:, input_ids.shape[1] :]
    yield from new[:, :max_new_tokens].unbind(1)
