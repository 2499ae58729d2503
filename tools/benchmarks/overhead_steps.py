"""Step time with and without logging and callbacks: `python -m ... --pairs N --steps K`.

One training in blocks of K steps: with logging to the experiment store, TensorBoard and the
progress bar, and without any of them. The order alternates between pairs of blocks. Prints JSON
with the seconds of every block. stderr must be a terminal: elsewhere the progress bar draws
nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from common.errors import ExperimentError, exit_on_error
from common.experiments.run import Run, start_experiment
from common.training.callbacks.base import Callback
from common.training.callbacks.progress import ProgressBar
from common.training.callbacks.tensorboard import TensorBoard
from common.training.trainer import Trainer
from tools.benchmarks import networks
from tools.benchmarks.train_ours import create_trainer, training_config

_WARMUP_STEPS = 45  # between two logged steps, so that each block has equally many


class Switch(Callback):
    """Adds and removes run and callbacks of the trainer, and times the blocks."""

    def __init__(self, run: Run, folder: Path, pairs: int, steps: int) -> None:
        self._run, self._folder, self._steps = run, folder, steps
        self._order = [
            on for pair in range(pairs) for on in ((True, False), (False, True))[pair % 2]
        ]
        self._began: float | None = None  # the block; None: still warming up
        self.seconds: dict[bool, list[float]] = {True: [], False: []}

    def on_step(self, trainer: Trainer) -> None:
        if trainer.step < _WARMUP_STEPS or (trainer.step - _WARMUP_STEPS) % self._steps:
            return
        now = time.perf_counter()
        if self._began is not None:
            self.seconds[self._order.pop(0)].append(now - self._began)
        self._switch(trainer)
        self._began = time.perf_counter()

    def _switch(self, trainer: Trainer) -> None:
        """Switch the trainer for the next block. This callback runs last."""
        for callback in trainer.callbacks[:-1]:
            callback.on_train_end(trainer)
        extras: list[Callback] = []
        if self._order and self._order[0]:
            extras = [ProgressBar(), TensorBoard(self._folder / f"block_{len(self._order)}")]
            for callback in extras:
                callback.on_train_start(trainer)
        trainer.run = self._run if extras else None
        trainer.callbacks = [*extras, self]
        trainer.should_stop = not self._order


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--network", type=networks.NETWORKS.__getitem__, required=True)
    parser.add_argument("--tokens", type=Path, required=True)
    parser.add_argument("--pairs", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    arguments = parser.parse_args()
    with exit_on_error(), tempfile.TemporaryDirectory() as folder:
        print(json.dumps(_measure(arguments, Path(folder))))


def _measure(arguments: argparse.Namespace, folder: Path) -> dict[str, list[float]]:
    """Raise ExperimentError if a measured part did not run."""
    if not sys.stderr.isatty():
        raise ExperimentError("stderr is not a terminal: the progress bar would draw nothing")
    every, steps = networks.LOG_EVERY_STEPS, arguments.steps
    if steps % every:
        raise ExperimentError(f"--steps must be a multiple of {every}, got {steps}")
    with start_experiment("overhead", project="benchmark") as run:
        switch = Switch(run, folder, arguments.pairs, steps)
        trainer = create_trainer(
            arguments.network,
            networks.windows(networks.open_tokens(arguments.tokens), arguments.network),
            training_config(device="cpu", compile="auto", log_every_steps=every),
            callbacks=[switch],
        )
        trainer.fit()
        if run.rows != arguments.pairs * steps // every:
            raise ExperimentError(f"{run.rows} rows were logged in {arguments.pairs} blocks")
    return {"with": switch.seconds[True], "without": switch.seconds[False]}


if __name__ == "__main__":
    main()
