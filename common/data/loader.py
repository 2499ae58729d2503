"""Token files -> batches. A training batch is a pure function of (seed, index), without state.

A batch is {"input_ids", "labels"}, both (batch, time) int64 (see data/batch.py).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from numpy.lib.stride_tricks import sliding_window_view

from common.data.batch import IGNORE_INDEX, Batch
from common.data.token_files import Tokens
from common.errors import DataError

Int64 = npt.NDArray[np.int64]


class RandomWindows:
    """Endless batches of windows at random offsets (with replacement, as in nanoGPT)."""

    def __init__(
        self, tokens: Tokens, *, batch_size: int, context_length: int, seed: int = 0
    ) -> None:
        _check_length(tokens, context_length)
        self._tokens = tokens
        self._batch_size = batch_size
        self._context_length = context_length
        self._seed = seed

    def batch(self, index: int) -> Batch:
        """Draw batch `index`."""
        # Philox is counter-based: the generator of any index costs the same, without state.
        generator = np.random.Generator(np.random.Philox(key=self._seed, counter=[0, index, 0, 0]))
        last_start = len(self._tokens) - self._context_length
        starts = generator.integers(0, last_start, size=(self._batch_size, 1), endpoint=True)
        return _batch(self._tokens, starts[:, 0], self._context_length)


class ShuffledWindows:
    """Epochs of adjacent windows in random order; each token but the first is predicted once per epoch.

    Neighbours share a token, as in EvalWindows. The first window of an epoch predicts 1 to
    `context_length` - 1 tokens, cycling through all lengths over epochs, so that windows start at
    other offsets; it and the last one are padded with label -100. A batch at the end of an epoch
    continues with the next.
    """

    # A run resumes with its original order; version 1 omitted some tokens.
    fingerprint: ClassVar = {"order": "shuffled, version 2"}

    def __init__(
        self, tokens: Tokens, *, batch_size: int, context_length: int, seed: int = 0
    ) -> None:
        _check_length(tokens, 2)
        self._tokens = tokens
        self._batch_size = batch_size
        self._context_length = context_length
        self._seed = seed
        self._stride = context_length - 1
        firsts = self._generator(0, 3).permutation(self._stride) + 1
        self._firsts = np.minimum(firsts, len(tokens) - 1)  # by epoch, cycled
        sizes = 1 - (self._firsts - (len(tokens) - 1)) // self._stride  # rounded up
        self._before = np.concatenate(
            [[0], np.cumsum(sizes)]
        )  # windows before each epoch of a cycle
        self._epoch = functools.lru_cache(maxsize=2)(self._make_epoch)

    def batch(self, index: int) -> Batch:
        """Return batch `index`."""
        first = index * self._batch_size
        rows = [self._window(window) for window in range(first, first + self._batch_size)]
        starts, counts = np.array(rows).T
        return _predicting(self._tokens, starts, counts, self._context_length)

    def epochs(self, batches: int) -> float:
        """How many epochs so many batches are."""
        epoch, place, size = self._place(batches * self._batch_size)
        return epoch + place / size

    def _place(self, number: int) -> tuple[int, int, int]:
        """Return a window's epoch, its index there, and the number of windows of that epoch."""
        turn, rest = divmod(number, int(self._before[-1]))
        epoch = int(np.searchsorted(self._before, rest, side="right")) - 1
        first, end = self._before[epoch : epoch + 2].tolist()
        return turn * self._stride + epoch, rest - first, end - first

    def _window(self, number: int) -> Int64:
        """(2,): start of the window, and the number of predicted tokens."""
        epoch, place, _ = self._place(number)
        window: Int64 = self._epoch(epoch)[:, place]
        return window

    def _make_epoch(self, epoch: int) -> Int64:
        """(2, windows): starts and counts in epoch order."""
        first = self._firsts[epoch % self._stride]
        ends = np.append(
            np.arange(first, len(self._tokens) - 1, self._stride), len(self._tokens) - 1
        )
        starts = np.append(0, ends[:-1])
        order = self._generator(epoch, 1).permutation(len(ends))
        return np.stack([starts, ends - starts])[:, order]

    def _generator(self, index: int, purpose: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=self._seed, counter=[0, 0, index, purpose]))


class MixedWindows:
    """RandomWindows of several sources: each sequence comes from a source drawn by weight."""

    def __init__(
        self,
        sources: Sequence[Tokens],
        weights: Sequence[float],
        *,
        batch_size: int,
        context_length: int,
        seed: int = 0,
    ) -> None:
        for tokens in sources:
            _check_length(tokens, context_length)
        self._sources = sources
        self._weights = np.array(weights) / np.sum(weights)
        self._batch_size = batch_size
        self._context_length = context_length
        self._seed = seed

    def batch(self, index: int) -> Batch:
        """Draw batch `index`."""
        generator = np.random.Generator(np.random.Philox(key=self._seed, counter=[0, index, 0, 2]))
        drawn = generator.choice(len(self._sources), size=self._batch_size, p=self._weights)
        last_starts = np.array([len(tokens) - self._context_length for tokens in self._sources])
        starts = generator.integers(0, last_starts[drawn], endpoint=True)
        windows = np.empty((self._batch_size, self._context_length), dtype=np.int64)
        for source in np.unique(drawn):
            rows = drawn == source
            windows[rows] = _windows(self._sources[source], starts[rows], self._context_length)
        input_ids = torch.from_numpy(windows)
        return {"input_ids": input_ids, "labels": input_ids}


class EvalWindows:
    """One ordered pass in which every token but the first is predicted exactly once.

    Adjacent windows share one token: the last, predicted token of a window is the first input of
    the next. The last window is padded with label -100.
    """

    def __init__(
        self,
        tokens: Tokens,
        *,
        batch_size: int,
        context_length: int,
        max_batches: int | None = None,
    ) -> None:
        _check_length(tokens, 2)
        self._tokens = tokens
        self._batch_size = batch_size
        self._context_length = context_length
        stride = context_length - 1
        self._starts = np.arange(0, len(tokens) - 1, stride)
        if max_batches is not None:
            # Spread over the whole split; always the same windows.
            count = min(len(self._starts), max_batches * batch_size)
            self._starts = self._starts[np.linspace(0, len(self._starts) - 1, count).astype(int)]

    def __len__(self) -> int:
        return -(-len(self._starts) // self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for first in range(0, len(self._starts), self._batch_size):
            starts = self._starts[first : first + self._batch_size]
            counts = np.minimum(self._context_length - 1, len(self._tokens) - 1 - starts)
            yield _predicting(self._tokens, starts, counts, self._context_length)


def _predicting(tokens: Tokens, starts: Int64, counts: Int64, length: int) -> Batch:
    """Batch of the windows at `starts`, which predict the first `counts` tokens after their first one.

    All other labels are -100; positions beyond the text repeat its last token.
    """
    offsets = np.arange(length)
    windows = tokens[np.minimum(starts[:, None] + offsets, len(tokens) - 1)].astype(np.int64)
    labels = np.where(offsets <= counts[:, None], windows, IGNORE_INDEX)
    return {"input_ids": torch.from_numpy(windows), "labels": torch.from_numpy(labels)}


def _batch(tokens: Tokens, starts: Int64, length: int) -> Batch:
    input_ids = torch.from_numpy(_windows(tokens, starts, length).astype(np.int64))
    return {"input_ids": input_ids, "labels": input_ids}


def _windows(tokens: Tokens, starts: Int64, length: int) -> Tokens:
    """(starts, length): one index into a view of all windows, three times as fast as slices."""
    found: Tokens = sliding_window_view(tokens, length)[starts]
    return found


def _check_length(tokens: Tokens, context_length: int) -> None:
    if len(tokens) < context_length:
        raise DataError(
            f"the text has {len(tokens)} tokens, fewer than one context of {context_length}",
            "lower data.context_length, or provide more text",
        )
