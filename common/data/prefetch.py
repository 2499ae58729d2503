"""Read and copy the next batches while the device computes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from common.data.batch import Batch


class Prefetcher:
    """Returns the batch of any index; a thread calls `make` for the next `depth` ones.

    Sequential access does not wait. A batch is a function of its index, so there is no state to
    save, and random access is only slower. For CUDA, batches are in pinned memory.
    """

    def __init__(self, make: Callable[[int], Batch], device: torch.device, depth: int = 2) -> None:
        self._batch = make
        self._depth = depth
        self._pin = device.type == "cuda"
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._coming: dict[int, Future[Batch]] = {}

    def batch(self, index: int) -> Batch:
        """Return batch `index`, and start preparing the next ones."""
        wanted = range(index, index + 1 + self._depth)
        self._coming = {i: f for i, f in self._coming.items() if i in wanted}
        for i in wanted:
            if i not in self._coming:
                self._coming[i] = self._thread.submit(self._make, i)
        return self._coming.pop(index).result()

    def _make(self, index: int) -> Batch:
        batch = self._batch(index)
        if self._pin:
            batch = {name: tensor.pin_memory() for name, tensor in batch.items()}
        return batch

    def close(self) -> None:
        """Stop the thread; drop unused batches."""
        self._thread.shutdown(cancel_futures=True)
        self._coming.clear()
