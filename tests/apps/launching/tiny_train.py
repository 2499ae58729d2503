"""A training script for the tests: the command line and the store of a real one, no torch, no time.

`steps` rows of a loss that is lowest at lr 1e-3; `misbehave` says how it goes wrong, at step 2.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
import time
from pathlib import Path

from common.config import Config, ConfigFile, print_configs
from common.errors import Interrupted, TrainingError, exit_on_error
from common.experiments.run import Run
from common.utils import start_experiment


class TinyConfig(Config):
    lr: float = 1e-2
    layers: int = 2
    seed: int = 0
    betas: tuple[float, float] = (0.9, 0.99)
    steps: int = 4
    step_seconds: float = 0.0
    misbehave: str = ""


def main() -> None:
    parser = argparse.ArgumentParser()
    for option in ("--config", "--name", "--share-auto"):
        parser.add_argument(option)
    for option in ("--resume", "--print-configs"):
        parser.add_argument(option, action="store_true")
    parser.add_argument("--tag", action="append", default=[])
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_intermixed_args()
    with exit_on_error():
        file = ConfigFile(arguments.config, [Path(__file__).parent])
        if arguments.print_configs:
            print_configs(
                lambda more: file.load(TinyConfig, [*arguments.overrides, *more]), sys.stdin
            )
            return
        config = file.load(TinyConfig, arguments.overrides)
        if config.misbehave != "nothing":
            train(config, arguments.name, arguments.tag, arguments.resume)


def train(config: TinyConfig, name: str, tags: list[str], resume: bool) -> None:
    received: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        deaf = config.misbehave == "deaf"
        signal.signal(number, signal.SIG_IGN if deaf else lambda n, _: received.append(n))
    shown = [f"{key}={os.environ.get(key)}" for key in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")]
    print("environment", *shown, "WORLD_SIZE" in os.environ)
    with start_experiment(
        name,
        prefix="tiny",
        config=config.model_dump(mode="json"),
        seed=config.seed,
        tags=tags,
        resume=resume,
        system_metrics_seconds=None,
    ) as run:
        if resume:
            run.resume_from(run.rows)
        for step in range(run.rows + 1, config.steps + 1):
            if step == 2:
                misbehave(config.misbehave, resume)
            loss = abs(math.log10(config.lr) + 3) + 0.1 * config.layers + 1 / step
            run.log({"loss": loss}, step=step, split="val")
            wait(config.step_seconds, received, run)


def wait(seconds: float, received: list[int], run: Run) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not received:
        time.sleep(0.01)
    if received:
        raise Interrupted(f"interrupted, {run.rows} rows are saved", received[0])


def misbehave(how: str, resume: bool) -> None:
    if how == "error":
        raise TrainingError("the loss is nan", "lower lr")
    if how == "crash":
        raise RuntimeError("out of luck")
    if how == "die" or (how == "die_once" and not resume):
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
