"""Log to TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import MissingPackageError
from common.training.callbacks.base import Callback

if TYPE_CHECKING:
    from common.training.trainer import Trainer


class TensorBoard(Callback):
    """Writes event files to `directory`; view them with `tensorboard --logdir DIRECTORY`.

    Raises MissingPackageError if the package is not installed.
    """

    def __init__(self, directory: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingPackageError(
                "training.tensorboard needs the package tensorboard",
                'install it: uv pip install -e ".[tensorboard]"',
            ) from error
        self._writer_class = SummaryWriter
        self._directory = directory

    def on_train_start(self, trainer: Trainer) -> None:
        # purge_step hides what a killed process wrote after the step that training resumes from.
        self._writer = self._writer_class(str(self._directory), purge_step=trainer.step + 1)

    def on_log(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        self._write("train", trainer.step, metrics)

    def on_evaluate(self, trainer: Trainer, metrics: Mapping[str, float], split: str) -> None:
        self._write(split, trainer.step, metrics)

    def on_train_end(self, trainer: Trainer) -> None:
        self._writer.close()

    def _write(self, split: str, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(f"{name}/{split}", value, step)
