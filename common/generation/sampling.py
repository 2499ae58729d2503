"""From logits to the next token."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from common.errors import ModelError

_BLOCK = 256  # tokens; a long row is searched in two steps: for a block, then within it
_MANY = 2**18  # logits, above which two steps are faster than torch.argmax


def check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raise ModelError for options that `sample_next` cannot take."""
    if not 0 <= temperature < math.inf:
        raise ModelError(f"temperature must be a number from 0 up, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ModelError(f"top_k must be at least 1, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ModelError(f"top_p must be above 0 and at most 1, got {top_p}")


def sample_next(
    logits: torch.Tensor,
    *,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    generator: torch.Generator | None,
) -> torch.Tensor:
    """Sample one token per row of `logits` (batch, vocab_size) -> (batch,) int64.

    Temperature 0 is greedy. `top_k` keeps the k most likely tokens, `top_p` the smallest set with
    total probability of at least p (Holtzman et al. 2020, "The Curious Case of Neural Text
    Degeneration", section 3.1), including ties with its least likely token. Raises ModelError if a
    row has no distribution (NaN, infinity).
    """
    if temperature == 0:
        return argmax(logits)
    words = None
    if top_k is not None and top_k < logits.shape[-1]:
        logits, words = logits.topk(top_k)  # few and sorted: the rest is cheap
    if temperature != 1:
        logits = logits.float() / max(temperature, 1e-6)  # avoids infinities
    weights = logits.softmax(dim=-1, dtype=torch.float32)
    if top_p is not None and top_p < 1:
        weights = weights.masked_fill(weights < _least_kept(weights, top_p), 0.0)
    drawn = _draw(weights, generator)
    return drawn if words is None else words.gather(1, drawn[:, None])[:, 0]


def argmax(logits: torch.Tensor) -> torch.Tensor:
    """`logits.argmax(dim=-1)` of (batch, vocab_size), in half the time for many rows on a CPU.

    PyTorch vectorises amax, but not argmax.
    """
    if logits.device.type != "cpu" or logits.shape[-1] < 2 * _BLOCK or logits.numel() < _MANY:
        return logits.argmax(dim=-1)
    block = _reduce_blocks(logits, torch.amax).argmax(dim=-1)
    inside, start = _open_block(logits, block)
    return start + inside.argmax(dim=-1)


def _least_kept(weights: torch.Tensor, top_p: float) -> torch.Tensor:
    """The smallest weight in the top-p set of each row: (batch, n) -> (batch, 1).

    Each row of weights sums to 1. NumPy's vectorised sort takes a thirtieth of the time of
    PyTorch's on a CPU.
    """
    if weights.device.type == "cpu":
        ordered = torch.from_numpy(np.sort(weights.detach().numpy(), axis=-1))
    else:
        ordered = weights.sort(dim=-1).values
    below = ordered.cumsum(dim=-1)  # including the weight itself
    rest = torch.full_like(below[:, :1], 1.0 - top_p)
    first = torch.searchsorted(below, rest, right=True).clamp(max=weights.shape[-1] - 1)
    return ordered.gather(1, first)


def _draw(weights: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """Sample one index per row with probabilities weights / sum: (batch, n) -> (batch,) int64.

    On a CPU by inversion, first over block sums, then within the block. `torch.multinomial` draws
    one random number per token, which takes longer there than a small model's forward pass.
    """
    if weights.device.type != "cpu":
        return torch.multinomial(weights, 1, generator=generator)[:, 0]
    if weights.shape[-1] < 2 * _BLOCK:
        return _invert(weights, generator)
    block = _invert(_reduce_blocks(weights, torch.sum), generator)
    inside, start = _open_block(weights, block)
    # The last block overlaps the one before it if n is not a multiple of the block size.
    others = torch.arange(_BLOCK) < (block * _BLOCK - start)[:, None]
    return start + _invert(inside.masked_fill(others, 0.0), generator)


def _invert(weights: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """The first index whose cumulative weight is above u times the sum, for one uniform u per row."""
    cumulative = weights.cumsum(dim=-1, dtype=torch.float64)  # keeps unlikely tokens
    total = cumulative[:, -1:]
    if not bool((total > 0).all()):  # also false for NaN
        raise ModelError(
            "cannot sample from the model's logits: some are NaN or infinite",
            "if the weights contain NaN, training has diverged; check its loss",
        )
    uniform = torch.rand(len(weights), 1, dtype=torch.float64, generator=generator)
    return torch.searchsorted(cumulative, uniform * total, right=True)[:, 0]


def _reduce_blocks(values: torch.Tensor, reduce: Callable[..., torch.Tensor]) -> torch.Tensor:
    """`reduce` each block: (batch, n) -> (batch, number of blocks); the last block may be shorter."""
    whole = values.shape[1] - values.shape[1] % _BLOCK
    reduced = reduce(values[:, :whole].view(len(values), -1, _BLOCK), dim=-1)
    if whole == values.shape[1]:
        return reduced
    return torch.cat([reduced, reduce(values[:, whole:], dim=-1, keepdim=True)], dim=1)


def _open_block(values: torch.Tensor, block: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the values (batch, block size) of each row's block (batch,), and their offsets in the row.

    A shorter last block is extended to the front, with values of the block before.
    """
    start = (block * _BLOCK).clamp(max=values.shape[1] - _BLOCK)
    return values.unfold(1, _BLOCK, 1)[torch.arange(len(values)), start], start
