"""The hooks of the training loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from common.training.trainer import Trainer


class Callback:
    """Override what you need. `state` and `tensors` go into every checkpoint and come back on a resume.

    An evaluation follows the checkpoint of its step. After a resume from it the evaluation runs
    again, so whatever `on_evaluate` did for that step has to be done, or replaced, a second time.
    """

    def on_train_start(self, trainer: Trainer) -> None:
        """Before the first step, after a resume too."""

    def on_gradients(self, trainer: Trainer) -> None:
        """After the backward passes of a step, before clipping: `parameter.grad` may be changed in place.

        With fp16 the gradients are still multiplied by `trainer.scaler.scale`; with FSDP they are parts.
        """

    def on_step(self, trainer: Trainer) -> None:
        """After each optimizer step."""

    def measure(self, trainer: Trainer, metrics: Mapping[str, float]) -> Mapping[str, float]:
        """Metrics to add to the row of the training split that is about to be logged."""
        return {}

    def on_log(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """After a row of the training split was logged."""

    def on_evaluate(self, trainer: Trainer, metrics: Mapping[str, float], split: str) -> None:
        """After each evaluation of `trainer.quick_split`, which is `val_quick` or `val`; at the last step
        also of `val`, where that is another.

        The weights may be read, also by one process alone: with FSDP each has a copy of them all.

        In the other hooks of FSDP processes have parts, and compute with the model together.
        """

    def on_train_end(self, trainer: Trainer) -> None:
        """Also called when training fails or is interrupted."""

    def state(self) -> dict[str, Any]:
        """JSON values."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up what `state` returned."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """State that is too large for JSON; the same in every process.

        Where the name ends with that of a parameter (`mean.head.weight`) and the shape is the same,
        it comes back split as the parameter is: with FSDP into parts, as gradients are.
        """
        return {}

    def load_tensors(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take up what `tensors` returned."""
