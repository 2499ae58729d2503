"""From logits to the next token."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from common.errors import ModelError

_BLOCK = 256  # words; a long row is searched in two steps: for a block, then in it
_MANY = 2**18  # logits, from which on two steps take less time than torch.argmax


def sample_next(
    logits: torch.Tensor,
    *,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    generator: torch.Generator | None,
) -> torch.Tensor:
    """Draw one token per row of `logits` (batch, vocab_size) -> (batch,) int64.

    temperature 0 is greedy. `top_k` keeps the k most likely tokens, `top_p` the fewest whose
    probabilities sum to at least p (Holtzman et al. 2020, "The Curious Case of Neural Text
    Degeneration", section 3.1), and those exactly as likely as the last of them. Raises ModelError
    where a row has no distribution (NaN, infinity).
    """
    if temperature == 0:
        return argmax(logits)
    words = None
    if top_k is not None and top_k < logits.shape[-1]:
        logits, words = logits.topk(top_k)  # few and sorted: all that follows is cheap
    if temperature != 1:
        logits = logits.float() / max(temperature, 1e-6)  # no temperature divides into infinities
    weights = logits.softmax(dim=-1, dtype=torch.float32)
    if top_p is not None and top_p < 1:
        weights = weights.masked_fill(weights < _least_kept(weights, top_p), 0.0)
    drawn = _draw(weights, generator)
    return drawn if words is None else words.gather(1, drawn[:, None])[:, 0]


def argmax(logits: torch.Tensor) -> torch.Tensor:
    """`logits.argmax(dim=-1)` of (batch, vocab_size), in half the time for many rows on a CPU.

    PyTorch finds the largest value with vector instructions (amax), but its place without (argmax).
    """
    if logits.device.type != "cpu" or logits.shape[-1] < 2 * _BLOCK or logits.numel() < _MANY:
        return logits.argmax(dim=-1)
    block = _reduce_blocks(logits, torch.amax).argmax(dim=-1)
    inside, start = _open_block(logits, block)
    return start + inside.argmax(dim=-1)


def _least_kept(weights: torch.Tensor, top_p: float) -> torch.Tensor:
    """The smallest of the largest weights that together reach `top_p`: (batch, n) -> (batch, 1).

    Each row of weights sums to 1. NumPy sorts with vector instructions, which takes a thirtieth of
    the time of PyTorch's sort on a CPU.
    """
    if weights.device.type == "cpu":
        ordered = torch.from_numpy(np.sort(weights.detach().numpy(), axis=-1))
    else:
        ordered = weights.sort(dim=-1).values
    below = ordered.cumsum(dim=-1)  # and the weight itself
    rest = torch.full_like(below[:, :1], 1.0 - top_p)
    first = torch.searchsorted(below, rest, right=True).clamp(max=weights.shape[-1] - 1)
    return ordered.gather(1, first)


def _draw(weights: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """One index per row, with the probabilities weights / their sum: (batch, n) -> (batch,) int64.

    On a CPU by inversion, first of the blocks' sums, then of the weights in the block.
    `torch.multinomial` draws one random number per word, which there takes longer than a small
    model's forward pass.
    """
    if weights.device.type != "cpu":
        return torch.multinomial(weights, 1, generator=generator)[:, 0]
    if weights.shape[-1] < 2 * _BLOCK:
        return _invert(weights, generator)
    block = _invert(_reduce_blocks(weights, torch.sum), generator)
    inside, start = _open_block(weights, block)
    # The last block begins in the one before it where n is no multiple of the block's size.
    others = torch.arange(_BLOCK) < (block * _BLOCK - start)[:, None]
    return start + _invert(inside.masked_fill(others, 0.0), generator)


def _invert(weights: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """The first index whose cumulative weight is above u times the sum, for one uniform u per row."""
    cumulative = weights.cumsum(dim=-1, dtype=torch.float64)  # rounds no unlikely word away
    total = cumulative[:, -1:]
    if not bool((total > 0).all()):  # also false for NaN
        raise ModelError(
            "the model's logits are no numbers to draw from: some are NaN or infinite",
            "training has diverged where the weights hold NaN; look at its loss",
        )
    uniform = torch.rand(len(weights), 1, dtype=torch.float64, generator=generator)
    return torch.searchsorted(cumulative, uniform * total, right=True)[:, 0]


def _reduce_blocks(values: torch.Tensor, reduce: Callable[..., torch.Tensor]) -> torch.Tensor:
    """(batch, n) -> (batch, number of blocks): `reduce` of each, the last of which may be shorter."""
    whole = values.shape[1] - values.shape[1] % _BLOCK
    reduced = reduce(values[:, :whole].view(len(values), -1, _BLOCK), dim=-1)
    if whole == values.shape[1]:
        return reduced
    return torch.cat([reduced, reduce(values[:, whole:], dim=-1, keepdim=True)], dim=1)


def _open_block(values: torch.Tensor, block: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The values (batch, block size) of each row's block (batch,), and where in the row they begin.

    A shorter last block is filled up from its front, with values of the block before.
    """
    start = (block * _BLOCK).clamp(max=values.shape[1] - _BLOCK)
    return values.unfold(1, _BLOCK, 1)[torch.arange(len(values)), start], start
