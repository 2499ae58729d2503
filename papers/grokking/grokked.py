"""Training up to 95% validation accuracy: what the Decoder and the MLP have in common."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from common.training import Callback

if TYPE_CHECKING:
    from common.experiments.run import Run
    from common.training import Trainer

GROKKED = 0.95  # validation accuracy; a run ends there


class StopWhenGrokked(Callback):
    """Ends the training where an evaluation finds an accuracy of 95%."""

    def __init__(self) -> None:
        self.reached_step: int | None = None

    def on_train_start(self, trainer: Trainer) -> None:
        trainer.should_stop = self.reached_step is not None  # killed between the end and its record

    def on_evaluate(self, trainer: Trainer, metrics: Mapping[str, float], split: str) -> None:
        if metrics["accuracy"] >= GROKKED:
            self.reached_step, trainer.should_stop = trainer.step, True

    def state(self) -> dict[str, Any]:
        return {"reached_step": self.reached_step}

    def load_state(self, state: dict[str, Any]) -> None:
        self.reached_step = state["reached_step"]


def train_until_grokked(trainer: Trainer, run: Run, unit: str) -> None:
    """Train, or go on where `run` was cut off; logs the result in steps, which are called `unit`.

    The result has `trained_<unit>`, and `<unit>` (to 95%) where it got there.
    """
    (stop,) = (each for each in trainer.callbacks if isinstance(each, StopWhenGrokked))
    if run.rows:
        trainer.resume()
    run.update(parameters=trainer.model.num_parameters())
    trainer.fit()
    found = {} if stop.reached_step is None else {unit: stop.reached_step}
    run.log({f"trained_{unit}": trainer.step, **found}, step=trainer.step, split="result")
    shutil.rmtree(run.directory / "checkpoints")  # a moving average has some 170 MB there
