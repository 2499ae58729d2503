"""Saves the checkpoints of a training one after another, and deletes those that are no longer wanted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from common.models.base import BaseLanguageModel
from common.training import checkpoint, sharded
from common.training.distributed import DistributedContext


class CheckpointWriter:
    """Writes checkpoints, in the background if asked to: one at a time, so memory stays bounded.

    In the background the tensors are copied first; the next save, and the end, wait for the one
    before. An error in the background is raised by whatever waits for it.

    Of several processes all call `write`; the main one writes, or all do where the model is sharded.
    """

    def __init__(
        self, in_background: bool = False, context: DistributedContext | None = None
    ) -> None:
        self._context = context or DistributedContext()
        self._thread = ThreadPoolExecutor(1, "checkpoint") if in_background else None
        self._pending: Future[None] | None = None

    def write(
        self,
        model: BaseLanguageModel,
        path: Path,
        weights: Mapping[str, torch.Tensor],
        state: Mapping[str, Any],
        tensors: Mapping[str, torch.Tensor],
        keep: int,
    ) -> None:
        """Save the checkpoint, then delete all but the latest `keep` and the best."""
        state = {"model": checkpoint.identity_of(model), **state}
        if any(map(sharded.is_part, weights.values())):
            checkpoint.save_parts(path, weights, state, tensors, self._context)
            if self._context.is_main:
                checkpoint.delete_old_checkpoints(path.parent, state["step"], keep)
            return
        if not self._context.is_main:
            return
        if self._thread is None:
            _save_and_tidy(path, weights, state, tensors, keep)
            return
        self.wait()
        copies = [
            {name: tensor.to("cpu", copy=True) for name, tensor in group.items()}
            for group in (weights, tensors)
        ]
        state = json.loads(json.dumps(state))
        self._pending = self._thread.submit(_save_and_tidy, path, copies[0], state, copies[1], keep)

    def wait(self) -> None:
        """Return when everything is on disk. Raises what went wrong."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def close(self) -> None:
        """Let a write that is under way come to its end."""
        if self._thread is not None:
            self._thread.shutdown(wait=True)


def _save_and_tidy(
    path: Path,
    weights: Mapping[str, torch.Tensor],
    state: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    keep: int,
) -> None:
    checkpoint.save_checkpoint(path, weights, state, tensors)
    checkpoint.delete_old_checkpoints(path.parent, state["step"], keep)
