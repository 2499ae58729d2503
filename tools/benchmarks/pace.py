"""Pacing of a training process by its parent.

The loop calls `after_step` after every optimizer step and stops when that returns False. Reports
are lines of JSON on stdout; all other output of the process goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any, Protocol

from tools.benchmarks.networks import NETWORKS, Network

_MIB = 2**20


class Pace(Protocol):
    @property
    def log_every_steps(self) -> int | None:
        """None: default."""

    def after_step(self) -> bool: ...

    def record(self, loss: float) -> None: ...


class Turns:
    """Trains in turns: a line on stdin gives the seconds of a turn, the end of stdin stops it.

    Warms up for `warmup_seconds` after the first step, which compiles.
    """

    log_every_steps = None

    def __init__(self, warmup_seconds: float) -> None:
        self._channel = _take_stdout()
        self._warmup_seconds = warmup_seconds
        self._turn: float | None = None  # its seconds; None: still warming up
        self._began = time.perf_counter()
        self._steps = 0
        self._first_step_ended = 0.0

    def after_step(self) -> bool:
        self._steps += 1
        now = time.perf_counter()
        if self._turn is None:
            if self._steps == 1:
                self._first_step_ended = now
            if self._steps < 2 or now - self._first_step_ended < self._warmup_seconds:
                return True
        elif now - self._began < self._turn:
            return True
        _finish_on_accelerator()
        seconds = time.perf_counter() - self._began
        _tell(self._channel, {"seconds": seconds, "steps": self._steps})
        line = sys.stdin.readline()
        if not line:
            return False
        self._turn, self._steps, self._began = float(line), 0, time.perf_counter()
        return True

    def record(self, loss: float) -> None: ...


class Steps:
    """Trains a number of steps, then reports the losses and the peak memory of the process."""

    log_every_steps = 1

    def __init__(self, steps: int) -> None:
        self._channel = _take_stdout()
        self._left = steps
        self._losses: list[float] = []

    def after_step(self) -> bool:
        self._left -= 1
        return self._left > 0

    def record(self, loss: float) -> None:
        self._losses.append(loss)

    def finish(self) -> None:
        _tell(self._channel, {"losses": self._losses, "peak_mib": peak_mib()})


def parse(description: str | None, **extra: Any) -> argparse.Namespace:
    """The arguments of a training process; `extra` are add_argument's, by name."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    parser.add_argument("--network", type=NETWORKS.__getitem__, required=True)
    parser.add_argument(
        "--tokens", type=Path, required=True, help="output of networks.write_tokens"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--compile", default="off")
    parser.add_argument("--accumulation", type=int, default=1, help="batches of one optimizer step")
    parser.add_argument("--activation-checkpointing", action="store_true")
    parser.add_argument("--steps", type=int, help="number of steps (default: in turns)")
    parser.add_argument("--warmup-seconds", type=float, default=5.0)
    for name, options in extra.items():
        parser.add_argument(f"--{name.replace('_', '-')}", **options)
    return parser.parse_args()


def choose_pace(arguments: argparse.Namespace) -> Turns | Steps:
    if arguments.steps is None:
        return Turns(arguments.warmup_seconds)
    return Steps(arguments.steps)


def network_of(arguments: argparse.Namespace) -> Network:
    network: Network = arguments.network
    return network


def peak_mib() -> float:
    """Peak memory of this process, in MiB."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / _MIB


def _finish_on_accelerator() -> None:
    """Synchronise the device, only at the end of a turn."""
    torch = sys.modules["torch"]
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _take_stdout() -> Any:
    """Reserve stdout for our lines: redirect other output to stderr."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return channel


def _tell(channel: Any, message: dict[str, Any]) -> None:
    print(json.dumps(message), file=channel, flush=True)
