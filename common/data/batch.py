"""Batches: their format, the sources that the Trainer draws from, and adapters for users' data.

A batch is a dictionary of tensors with equal first dimension. Trainer, Evaluator and the
distributed code never inspect one; only the objective does (training/objective.py). A text batch is
{"input_ids", "labels"}, both (batch, time) int64: as in Hugging Face models, the labels are the
input ids (the model shifts them) and -100 is ignored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler

from common.errors import DataError

Batch = dict[str, torch.Tensor]
IGNORE_INDEX = -100  # the ignored label, as in PyTorch and Hugging Face

_EXPECTED = 'expected {"input_ids", "labels"} of (batch, time) int64, or the input_ids alone'
_NO_LABELS = "labels are the input ids, the model shifts them; -100 marks ignored labels"


class BatchSource(Protocol):
    """Protocol of training data: `batch(i)` always returns the same batch for `i`.

    Optional: `epochs(batches) -> float` converts a number of batches to epochs, and `fingerprint`
        (JSON) identifies the order for a resume.
    """

    def batch(self, index: int) -> Any: ...


def count_labels(labels: torch.Tensor) -> int:
    """Number of predicted tokens in `labels` (batch, time): all but -100 and the first of each row."""
    return int((labels[:, 1:] != IGNORE_INDEX).sum())


def num_rows(batch: Batch) -> int:
    """The size of the first dimension."""
    return len(next(iter(batch.values())))


def rows_of(batch: Batch, rank: int, world_size: int) -> Batch | None:
    """The rows of `batch` that process `rank` of `world_size` computes; None if it has none."""
    if world_size == 1:
        return batch
    size = num_rows(batch)
    share = -(-size // world_size)
    if rank * share >= size:
        return None
    return {name: tensor[rank * share : (rank + 1) * share] for name, tensor in batch.items()}


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Copy every tensor to `device` asynchronously."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def to_batch(given: object, vocab_size: int | None = None) -> Batch:
    """Convert a loader's item to {"input_ids", "labels"} of (batch, time) int64.

    Accepts a mapping, a tensor of input ids, or a 1-tuple of it (as from `TensorDataset`). Labels
    default to the input ids. Tokens with 0 in an `attention_mask` of (batch, time) are padding:
    their labels are -100. Other entries are dropped.
    Raises DataError for anything else, for ids outside of 0 to `vocab_size` - 1, and for padding
    that is not at the end: the models have no mask and would read it.
    """
    if isinstance(given, list | tuple) and len(given) == 1:
        given = given[0]
    if isinstance(given, torch.Tensor):
        given = {"input_ids": given}
    if not isinstance(given, Mapping) or "input_ids" not in given:
        what = f"the keys {[*given]}" if isinstance(given, Mapping) else type(given).__name__
        raise DataError(f"a batch is {what}", _EXPECTED)
    input_ids = given["input_ids"]
    labels = given.get("labels", input_ids)
    if not (_is_ids(input_ids) and _is_ids(labels) and input_ids.shape == labels.shape):
        shapes = " and ".join(describe_tensor(tensor) for tensor in (input_ids, labels))
        raise DataError(f"input_ids and labels are {shapes}", _EXPECTED)
    mask = given.get("attention_mask")
    if mask is not None:
        if mask.shape != input_ids.shape or (mask[:, :-1].bool() < mask[:, 1:].bool()).any():
            raise DataError(
                f"the attention_mask of {describe_tensor(mask)} has padding before a token",
                'pad at the end (padding_side="right"), with a mask of (batch, time)',
            )
        labels = labels.masked_fill(mask == 0, IGNORE_INDEX)
    batch = {"input_ids": input_ids.long(), "labels": labels.long()}
    for name, tensor in batch.items():
        _check_ids(name, tensor, vocab_size)
    return batch


def _check_ids(name: str, ids: torch.Tensor, vocab_size: int | None) -> None:
    """Check ids here: not every loss does, and a GPU reports only a failed assertion."""
    if not ids.numel():
        return
    if name == "labels":
        ids = ids.where(ids != IGNORE_INDEX, 0)
    low, high = (int(value) for value in ids.aminmax())
    if low < 0:
        raise DataError(f"{name} holds the id {low}", _NO_LABELS if name == "labels" else _EXPECTED)
    if vocab_size is not None and high >= vocab_size:
        raise DataError(
            f"{name} holds the id {high}, the model has {vocab_size} tokens",
            "use the tokenizer of the model, or a model with vocab_size=len(tokenizer)",
        )


def _is_ids(tensor: object) -> bool:
    return isinstance(tensor, torch.Tensor) and tensor.ndim == 2 and not tensor.is_floating_point()


def describe_tensor(tensor: object) -> str:
    """Dtype and shape of a tensor, or the type of any other value, for error messages."""
    if isinstance(tensor, torch.Tensor):
        return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
    return type(tensor).__name__


class LoaderBatches:
    """The batches of a DataLoader by index, over epochs, so that a resume is exact.

    `shuffle=True` derives the order of each epoch from the seed of the loader's `generator` (0
    without one) and the number of the epoch. Items must be deterministic. The loader's workers are
    not used, since the Trainer prefetches batches itself.
    Raises DataError for loaders without a batch by index: an IterableDataset, or a custom sampler.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        sampler: Any = loader.sampler
        is_random = type(sampler) is RandomSampler and not sampler.replacement
        if type(loader.batch_sampler) is not BatchSampler or not (
            type(sampler) is SequentialSampler
            or (is_random and len(sampler) == len(sampler.data_source))
        ):
            raise DataError(
                "this DataLoader cannot return a batch by index, which an exact resume needs "
                "(an IterableDataset, or a custom sampler)",
                "pass a DataLoader(dataset, batch_size=..., shuffle=...), or an object with "
                "batch(index) -> a dictionary of tensors",
            )
        self._loader = loader
        self._shuffle = is_random
        self._seed = loader.generator.initial_seed() if loader.generator is not None else 0
        self._rows = len(sampler)
        self._epoch: tuple[int, np.ndarray[Any, Any]] | None = None
        _check_not_empty(len(loader), "the DataLoader", "its dataset, and drop_last")

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Identify the data for a resume, as far as possible."""
        return {
            "rows": self._rows,
            "batch_size": self._loader.batch_size,
            "drop_last": self._loader.drop_last,
            "order": f"shuffled with seed {self._seed}" if self._shuffle else "as they are",
        }

    def batch(self, index: int) -> Any:
        """Collate the rows of batch `index`."""
        epoch, place = divmod(index, len(self._loader))
        size = self._loader.batch_size
        assert size is not None  # set by a BatchSampler
        rows = self._order(epoch)[place * size : (place + 1) * size]
        dataset = cast(Any, self._loader.dataset)
        fetch = getattr(dataset, "__getitems__", None)  # optional method that reads rows together
        items = fetch(rows.tolist()) if fetch else [dataset[row] for row in rows.tolist()]
        return self._loader.collate_fn(items)

    def epochs(self, batches: int) -> float:
        """Convert a number of batches to epochs."""
        return batches / len(self._loader)

    def _order(self, epoch: int) -> np.ndarray[Any, Any]:
        if not self._shuffle:
            return np.arange(self._rows)
        if self._epoch is None or self._epoch[0] != epoch:
            generator = np.random.Generator(
                np.random.Philox(key=self._seed % 2**64, counter=[0, 0, epoch, 4])
            )
            self._epoch = (epoch, generator.permutation(self._rows))
        return self._epoch[1]


class ListedBatches:
    """The batches of a list, repeated."""

    def __init__(self, batches: Sequence[object]) -> None:
        self._batches = batches
        _check_not_empty(len(batches), "the list of batches", "it")

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Identify the data for a resume."""
        return {"batches": len(self._batches)}

    def epochs(self, batches: int) -> float:
        """Convert a number of batches to passes over the list."""
        return batches / len(self._batches)

    def batch(self, index: int) -> Any:
        """Return batch `index`, modulo the length of the list."""
        return self._batches[index % len(self._batches)]


def batch_source(given: object) -> BatchSource:
    """Convert training data: an object with `batch(index)`, a DataLoader, or a list.

    Raises DataError for anything else, in particular for iterators, which a resume cannot rewind.
    """
    if hasattr(given, "batch"):
        source: BatchSource = given
        return source
    if isinstance(given, DataLoader):
        return LoaderBatches(given)
    if isinstance(given, Sequence) and not isinstance(given, str | bytes):
        return ListedBatches(given)
    raise DataError(
        f"cannot train on a {type(given).__name__}",
        "pass a DataLoader, a list of batches, or an object with batch(index) such as RandomWindows",
    )


def _check_not_empty(count: int, what: str, look: str) -> None:
    if count == 0:
        raise DataError(f"{what} has no batch to train on", f"look at {look}")
