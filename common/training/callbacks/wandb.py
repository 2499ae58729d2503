"""Log to Weights & Biases, on its server or to a local folder."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from common.errors import ConfigError, MissingPackageError, TrainingError, did_you_mean
from common.experiments.conditions import config_hash
from common.training.callbacks.base import Callback
from common.utils.logging import get_logger

if TYPE_CHECKING:
    from common.experiments.run import Run
    from common.training.trainer import Trainer

_MODES = ["online", "offline", "disabled"]
_INTERRUPTED = 255  # what W&B calls a run that ended on Ctrl-C


class WandB(Callback):
    """Logs `train/loss`, `val/loss`, `val_quick/loss` ... as the run `run.name`, grouped by configuration.

    `mode` is online or offline; offline writes to `<run folder>/wandb`, which `wandb sync` uploads.
    WANDB_MODE takes precedence and may also be `disabled`. A resumed training continues the run by
    the id saved in its checkpoints. Steps that are trained again log the same numbers again.
    Raises MissingPackageError if the package is not installed.
    """

    def __init__(self, run: Run, mode: str = "online") -> None:
        try:
            import wandb
        except ImportError as error:
            raise MissingPackageError(
                "training.wandb needs the package wandb",
                'install it: uv pip install -e ".[wandb]"',
            ) from error
        self._wandb = wandb
        self._run = run
        self._mode: Any = os.environ.get("WANDB_MODE") or mode
        if self._mode not in _MODES:
            raise ConfigError(f"WANDB_MODE is '{self._mode}'", did_you_mean(self._mode, _MODES))
        self._id = secrets.token_hex(4)
        self._session: Any = None

    def on_train_start(self, trainer: Trainer) -> None:
        """Start the W&B run. Raises TrainingError if login or connection fails."""
        manifest = self._run.manifest
        # Its console capture would record every redraw of the progress bar.
        settings = self._wandb.Settings(console="off", silent=self._mode == "offline")
        try:
            self._session = self._wandb.init(
                id=self._id,
                resume="allow",
                name=self._run.name,
                project=manifest["project"] or None,
                group=config_hash(manifest)[:8],
                tags=manifest["tags"],
                config=manifest["config"],
                dir=str(self._run.directory),
                mode=self._mode,
                settings=settings,
            )
        except self._wandb.errors.Error as error:
            reason = " ".join(str(error).split())
            raise TrainingError(
                f"Weights & Biases cannot be used: {reason}",
                "run `wandb login`, or set training.wandb=offline and upload later with `wandb sync`",
            ) from error
        if self._session.offline and not self._session.disabled:
            folder = self._session.settings.sync_dir
            get_logger("wandb").info(f"offline; to upload the run: wandb sync {folder}")

    def on_log(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        self._write("train", trainer.step, metrics)

    def on_evaluate(self, trainer: Trainer, metrics: Mapping[str, float], split: str) -> None:
        self._write(split, trainer.step, metrics)

    def on_train_end(self, trainer: Trainer) -> None:
        if self._session is None:
            return
        error = sys.exc_info()[0]  # the error that ended the training, if any
        is_interrupt = error is not None and issubclass(error, KeyboardInterrupt)
        self._session.finish(exit_code=_INTERRUPTED if is_interrupt else int(error is not None))

    def state(self) -> dict[str, Any]:
        return {"id": self._id}

    def load_state(self, state: dict[str, Any]) -> None:
        self._id = state["id"]

    def _write(self, split: str, step: int, metrics: Mapping[str, float]) -> None:
        named = {f"{split}/{name}": value for name, value in metrics.items()}
        self._session.log(named, step=step)
