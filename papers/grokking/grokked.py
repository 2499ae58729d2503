"""Training up to 95% validation accuracy, shared by the Decoder and the MLP."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from common.training import Callback

if TYPE_CHECKING:
    from common.experiments.run import Run
    from common.training import Trainer

GROKKED = 0.95  # validation accuracy at which a run ends


class StopWhenGrokked(Callback):
    """Stops training when an evaluation reaches 95% accuracy."""

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
    """Train, or resume `run`; log the result in steps, which are called `unit`.

    The result has `trained_<unit>`, and `<unit>` (to 95%) if reached.
    """
    (stop,) = (each for each in trainer.callbacks if isinstance(each, StopWhenGrokked))
    if run.rows:
        trainer.resume()
    run.update(parameters=trainer.model.num_parameters())
    trainer.fit()
    found = {} if stop.reached_step is None else {unit: stop.reached_step}
    run.log({f"trained_{unit}": trainer.step, **found}, step=trainer.step, split="result")
    shutil.rmtree(run.directory / "checkpoints")  # 170 MB with a moving average
