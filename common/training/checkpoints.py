"""Write the checkpoints of a training, find the latest and the best, delete old ones."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from common.errors import CheckpointError
from common.models import checkpoint
from common.models.base import BaseModel
from common.models.checkpoint import Checkpoint
from common.models.shards import is_sharded, write_shards
from common.training.distributed import DistributedContext
from common.utils.files import read_json, write_json_atomic
from common.utils.logging import get_logger

_STEP = re.compile(r"step_(\d+)")


class CheckpointWriter:
    """Writes checkpoints, optionally in the background: one at a time, so memory is bounded.

    A background write copies the tensors first; the next save and the end of training wait for it
    and raise its errors. Every rank calls `write`; rank 0 writes, or all ranks if the model is
    sharded.
    """

    def __init__(
        self, in_background: bool = False, context: DistributedContext | None = None
    ) -> None:
        self._context = context or DistributedContext()
        self._thread = ThreadPoolExecutor(1, "checkpoint") if in_background else None
        self._pending: Future[None] | None = None

    def write(
        self,
        model: BaseModel,
        path: Path,
        weights: Mapping[str, torch.Tensor],
        state: Mapping[str, Any],
        tensors: Mapping[str, torch.Tensor],
        keep: int,
    ) -> None:
        """Save the checkpoint, then delete all but the latest `keep` and the best."""
        state = {"model": checkpoint.identity_of(model), **state}
        if any(map(is_sharded, weights.values())):
            save_shards(path, weights, state, tensors, self._context)
            if self._context.is_main:
                delete_old_checkpoints(path.parent, state["step"], keep)
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
        """Wait until everything is on disk; raises the error of a background write."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def close(self) -> None:
        """Wait for a running write to end."""
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
    delete_old_checkpoints(path.parent, state["step"], keep)


def save_shards(
    path: Path,
    weights: Mapping[str, torch.Tensor],
    state: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    context: DistributedContext,
) -> Path:
    """`save_checkpoint` of a sharded model, called by every rank at once: each writes its shards."""
    building = context.from_main(checkpoint.temporary_folder(path))
    lines: list[str] = []
    try:
        with _all_or_none(path, context):
            if context.is_main:
                checkpoint.make_empty(building)
        with _all_or_none(path, context):
            files = write_shards(building, weights, tensors, context.rank)
            if context.is_main:
                files.append(checkpoint.write_state(building, state))
            lines = checkpoint.seal(files)
        lines = [line for own in context.gather(lines) for line in own]
        with _all_or_none(path, context):
            if context.is_main:
                checkpoint.publish(building, path, lines)
    finally:
        if context.is_main:
            shutil.rmtree(building, ignore_errors=True)
    return path


@contextmanager
def _all_or_none(path: Path, context: DistributedContext) -> Iterator[None]:
    """Turn a failure in one process into a CheckpointError in all, so that none continues alone."""
    problem = None
    try:
        yield
    except (OSError, SafetensorError) as error:
        problem = str(error)
    problems = [found for found in context.gather(problem) if found is not None]
    if problems:
        raise checkpoint.save_error(path, problems[0])


def steps_in(directory: Path) -> list[int]:
    """Steps that have a checkpoint folder, ascending."""
    if not directory.is_dir():
        return []
    found = (_STEP.fullmatch(entry.name) for entry in directory.iterdir())
    return sorted(int(match[1]) for match in found if match)


def latest_checkpoint(
    directory: Path,
    device: str | torch.device = "cpu",
    context: DistributedContext | None = None,
    parts: Mapping[str, torch.Tensor] | None = None,
) -> Checkpoint | None:
    """Read the newest intact checkpoint; damaged ones are skipped with a warning.

    Rank 0 selects it, and all ranks read the same one. `parts`: see Checkpoint.
    """
    context = context or DistributedContext()
    path = context.from_main(_newest_whole(directory) if context.is_main else None)
    if path is None:
        return None
    return Checkpoint(path, checkpoint.read_state(path), device, parts or {})


def _newest_whole(directory: Path) -> Path | None:
    for step in reversed(steps_in(directory)):
        try:
            return checkpoint.load_checkpoint(directory / f"step_{step}").path
        except CheckpointError as error:
            get_logger("checkpoint").warning(f"{error.message}; trying the one before")
    return None


def mark_best(directory: Path, step: int | None, loss: float) -> None:
    """Record `step` as the one with the lowest validation loss (nats per token); None: no step."""
    if step is None:
        (directory / "best.json").unlink(missing_ok=True)
    else:
        write_json_atomic(directory / "best.json", {"step": step, "loss": loss})


def best_checkpoint(directory: Path) -> Path:
    """The checkpoint with the lowest validation loss, or the latest if none is marked."""
    mark = directory / "best.json"
    if mark.exists():
        hint = "choose a checkpoint by its step; a resume writes this file again"
        try:
            return directory / f"step_{int(read_json(mark, CheckpointError, hint)['step'])}"
        except (TypeError, KeyError, ValueError) as error:
            raise CheckpointError(f"{mark} names no step", hint) from error
    steps = steps_in(directory)
    if not steps:
        raise CheckpointError(f"no checkpoint in {directory}", "train the model first")
    return directory / f"step_{steps[-1]}"


def delete_old_checkpoints(directory: Path, step: int, keep: int) -> None:
    """Delete all but the best and the latest `keep` up to `step`, which was just saved.

    Later ones are damaged (training resumed from before them) and are replaced when training
    reaches them. Partial folders of a killed process are deleted too.
    """
    best = best_checkpoint(directory)
    for old in [s for s in steps_in(directory) if s <= step][:-keep]:
        if (path := directory / f"step_{old}") != best:
            path.rename(
                checkpoint.replaced(path)
            )  # a kill must not leave a partial folder under its name
    for rubbish in directory.glob(".step_*"):
        checkpoint.delete(rubbish)
