"""Stop when the validation loss no longer falls."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from common.training.callbacks.base import Callback
from common.utils.logging import get_logger

if TYPE_CHECKING:
    from common.training.trainer import Trainer


class EarlyStopping(Callback):
    """Stops training after `patience` consecutive evaluations without a new lowest loss.

    Compares only losses of `trainer.quick_split`, never a loss over few batches with one of a whole
    split.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.best = math.inf
        self.evaluations_without_gain = 0

    def on_evaluate(self, trainer: Trainer, metrics: Mapping[str, float], split: str) -> None:
        if split != trainer.quick_split:
            return
        if metrics["loss"] < self.best:
            self.best, self.evaluations_without_gain = metrics["loss"], 0
            return
        self.evaluations_without_gain += 1
        if self.evaluations_without_gain >= self.patience and not trainer.should_stop:
            trainer.should_stop = True
            get_logger("training").info(
                f"stopping early: no lower {split} loss in {self.patience} evaluations",
                extra={"step": trainer.step, "best": round(self.best, 4)},
            )

    def state(self) -> dict[str, Any]:
        return {"best": self.best, "evaluations_without_gain": self.evaluations_without_gain}

    def load_state(self, state: dict[str, Any]) -> None:
        self.best = state["best"]
        self.evaluations_without_gain = state["evaluations_without_gain"]
