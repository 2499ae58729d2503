"""A progress bar on a terminal, periodic log lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from common.training.callbacks.base import Callback
from common.utils.logging import get_logger
from common.utils.progress import EVERY_SECONDS, time_left

if TYPE_CHECKING:
    from common.training.trainer import Trainer

# Shown beside the losses where logged; one line of a terminal has less room.
_IN_BAR = {"tokens_per_second": "{:,.0f} tokens/s", "mfu": "MFU {:.0%}"}
_IN_LINE = {
    "learning_rate": "lr {:.1e}",
    "gradient_norm": "norm {:.2f}",
    **_IN_BAR,
    "memory_gib": "{:.1f} GiB",
    "gpu_memory_gib": "{:.1f} GiB on the GPU",
}


class ProgressBar(Callback):
    """Shows step, losses, speed and time left: on stderr on a terminal, else in the log."""

    def __init__(self) -> None:
        columns = (
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
        )
        # Redrawing ten times a second costs a small model 2% of its speed (measured); four are
        # enough.
        self._bar = Progress(*columns, console=Console(stderr=True), refresh_per_second=4)
        self._interactive = sys.stderr.isatty()
        self._losses: dict[str, float] = {}
        self._metrics: Mapping[str, float] = {}
        self._started = self._last_line = time.monotonic()
        self._first_step = 0
        self._last_text = ""

    def on_train_start(self, trainer: Trainer) -> None:
        self._started = self._last_line = time.monotonic()
        self._first_step = trainer.step
        self._task = self._bar.add_task("", total=trainer.config.max_steps, text="")
        if self._interactive:
            self._bar.start()

    def on_step(self, trainer: Trainer) -> None:
        self._bar.update(self._task, completed=trainer.step)

    def on_log(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        self._losses["loss"] = metrics["loss"]
        self._metrics = metrics
        self._bar.update(self._task, text=self._text(_IN_BAR))
        # The evaluation of this step prints the same and more.
        if time.monotonic() - self._last_line > EVERY_SECONDS and not trainer.evaluates_now:
            self._print_line(trainer)

    def on_evaluate(self, trainer: Trainer, metrics: Mapping[str, float], split: str) -> None:
        self._losses[f"{split} loss"] = metrics["loss"]
        self._bar.update(self._task, text=self._text(_IN_BAR))
        self._print_line(trainer)

    def on_train_end(self, trainer: Trainer) -> None:
        if self._interactive:
            self._bar.stop()

    def _text(self, shown: Mapping[str, str]) -> str:
        parts = [f"{name} {value:.3f}" for name, value in self._losses.items()]
        found = self._metrics
        parts += [text.format(found[name]) for name, text in shown.items() if name in found]
        return "  ".join(parts)

    def _print_line(self, trainer: Trainer) -> None:
        if self._interactive:
            return
        now = time.monotonic()
        steps = trainer.config.max_steps
        text = f"step {trainer.step}/{steps}  {self._text(_IN_LINE)}"
        if text == self._last_text:  # evaluated again, to the same digits
            return
        self._last_line, self._last_text = now, text
        done, total = trainer.step - self._first_step, steps - self._first_step
        left = time_left(now - self._started, done, total)
        get_logger("progress").info(f"{text}  {left}".rstrip())
