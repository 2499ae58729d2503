"""Profile some training steps: a trace for Perfetto and a table of operators."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch.profiler import ProfilerAction, ProfilerActivity, profile

from common.training.callbacks.base import Callback
from common.utils.files import atomic_path, write_text_atomic
from common.utils.logging import get_logger
from common.utils.paths import display_path

if TYPE_CHECKING:
    from common.training.trainer import Trainer

_ROWS = 30  # of the table
_log = get_logger("profiler")


class Profiler(Callback):
    """Profiles steps `first` to `last`, inclusive, counted from 1.

    The step before them, if any, warms the profiler up. What happens between two steps (an
    evaluation, a checkpoint) is recorded too: choose steps without, and not the very first ones, in
    which kernels are still selected and compiled. Profiled steps are slower, but compute the same.
    Writes trace.json (open it at ui.perfetto.dev or chrome://tracing) and operators.txt.
    """

    def __init__(self, directory: Path, first: int, last: int) -> None:
        self.directory = directory
        self.first, self.last = first, last
        self._profile: profile | None = None

    def on_train_start(self, trainer: Trainer) -> None:
        if trainer.step >= self.last:  # resumed after them
            return
        activities = [ProfilerActivity.CPU]
        if trainer.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        start = trainer.step
        self._profile = profile(
            activities=activities, schedule=lambda done: self._action(start + done + 1)
        )
        self._profile.start()

    def _action(self, step: int) -> ProfilerAction:
        if step < self.first:
            return ProfilerAction.WARMUP if step == self.first - 1 else ProfilerAction.NONE
        return ProfilerAction.RECORD if step <= self.last else ProfilerAction.NONE

    def on_step(self, trainer: Trainer) -> None:
        if self._profile is None:
            return
        if trainer.step >= self.last:
            self._write(trainer)
        else:
            self._profile.step()

    def on_train_end(self, trainer: Trainer) -> None:
        if self._profile is None:
            return
        if trainer.step >= self.first:
            self._write(trainer)
            return
        self._profile.stop()
        self._profile = None
        _log.warning(f"training ended before step {self.first}, the first one to profile")

    def _write(self, trainer: Trainer) -> None:
        assert self._profile is not None
        finished, self._profile = self._profile, None
        finished.stop()
        with atomic_path(self.directory / "trace.json") as temporary:
            finished.export_chrome_trace(str(temporary))
        where = "cuda" if trainer.device.type == "cuda" else "cpu"
        table = finished.key_averages().table(sort_by=f"self_{where}_time_total", row_limit=_ROWS)
        write_text_atomic(self.directory / "operators.txt", table)
        _log.info(
            f"profiled up to step {trainer.step}: {display_path(self.directory / 'operators.txt')}, "
            f"and trace.json beside it (open it at https://ui.perfetto.dev)"
        )
