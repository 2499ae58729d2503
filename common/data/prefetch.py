"""The next batches are read and copied while the device computes."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import torch

from common.data.batch import Batch, BatchSource, to_batch


class Prefetcher:
    """Gives the batch of any index; those after it are being made by a thread, `depth` ahead.

    Asked in order it waits for nothing. A batch is a function of its index, so there is no state to
    save, and going to another place is only slower. For CUDA, batches come in pinned memory.
    """

    def __init__(
        self,
        source: BatchSource,
        device: torch.device,
        depth: int = 2,
        vocab_size: int | None = None,
    ) -> None:
        self._source = source
        self._vocab_size = vocab_size
        self._depth = depth
        self._pin = device.type == "cuda"
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._coming: dict[int, Future[Batch]] = {}

    def batch(self, index: int) -> Batch:
        wanted = range(index, index + 1 + self._depth)
        self._coming = {i: f for i, f in self._coming.items() if i in wanted}
        for i in wanted:
            if i not in self._coming:
                self._coming[i] = self._thread.submit(self._make, i)
        return self._coming.pop(index).result()

    def _make(self, index: int) -> Batch:
        batch = to_batch(self._source.batch(index), self._vocab_size)
        if self._pin:
            batch = {name: tensor.pin_memory() for name, tensor in batch.items()}
        return batch

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)
        self._coming.clear()
