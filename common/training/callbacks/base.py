"""The hooks of the training loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from common.training.trainer import Trainer


class Callback:
    """Hooks to override. `state` and `tensors` are saved in every checkpoint and restored on a resume.

    An evaluation follows the checkpoint of its step. After a resume from it the evaluation runs
    again, so `on_evaluate` must be repeatable for that step.
    """

    def on_train_start(self, trainer: Trainer) -> None:
        """Called before the first step, also after a resume."""

    def on_gradients(self, trainer: Trainer) -> None:
        """Called after the backward passes of a step, before clipping: may change `parameter.grad` in place.

        With fp16 the gradients are still multiplied by `trainer.scaler.scale`; with FSDP they are
        shards.
        """

    def on_step(self, trainer: Trainer) -> None:
        """Called after each optimizer step."""

    def measure(self, trainer: Trainer, metrics: Mapping[str, float]) -> Mapping[str, float]:
        """Return metrics to add to the next logged row of the training split."""
        return {}

    def on_log(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """Called after a row of the training split is logged."""

    def on_evaluate(self, trainer: Trainer, metrics: Mapping[str, float], split: str) -> None:
        """Called after each evaluation of `trainer.quick_split` (`val_quick` or `val`), and of
        `val` at the last step.

        The weights may be read, even by one process alone: with FSDP each process holds a full copy
        here.

        In the other hooks FSDP processes hold shards and must compute with the model together.
        """

    def on_train_end(self, trainer: Trainer) -> None:
        """Called at the end, also when training fails or is interrupted."""

    def state(self) -> dict[str, Any]:
        """JSON values."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return state that is too large for JSON; the same in every process.

        A tensor whose name ends with a parameter's (`mean.head.weight`) and that has its shape is
        restored sharded like the parameter (FSDP).
        """
        return {}

    def load_tensors(self, tensors: dict[str, torch.Tensor]) -> None:
        """Restore what `tensors` returned."""
