"""Seconds from the start of a process to a validation loss: our training and nanoGPT's, alternating.

Each runs as its own command, as typed by a user. evaluate_checkpoint.py measures the loss of each
checkpoint independently on the whole validation split.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from common.errors import ExperimentError
from common.training.checkpoints import steps_in
from common.utils.paths import REPOSITORY_ROOT
from tools.benchmarks.plan import Plan
from tools.benchmarks.processes import run_process
from tools.benchmarks.ratios import Measured, Row, at_most, compared, limited
from tools.benchmarks.results import say
from tools.benchmarks.turns import last_line, module_command

OURS = "{python} projects/speedrun/train.py --config configs/char_cpu.yaml data.path={text} seed={seed}"
NANOGPT = (
    "{python} train.py config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 "
    "--log_interval=1 --block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 "
    "--max_iters=2000 --lr_decay_iters=2000 --dropout=0.0"
)
TARGET = at_most(0.1)
Outcome = dict[str, Any]  # seconds, and the output of evaluate_checkpoint.py


def measure_time_to_loss(plan: Plan) -> Measured:
    """Run all repetitions. Raises ExperimentError if a command fails, or leaves no checkpoint."""
    text = plan.needed_text("time-to-loss").resolve()
    contestants: dict[str, Callable[[int], Outcome]] = {
        "ours": lambda number: _train_ours(plan, text, number)
    }
    if plan.nanogpt is not None:
        copy = _prepare_nanogpt(plan.nanogpt, text, plan.folder / "nanogpt")
        contestants["nanoGPT"] = lambda number: _train_nanogpt(copy, text)
    outcomes: dict[str, list[Outcome]] = {name: [] for name in contestants}
    for number in range(plan.repetitions):
        order = list(contestants) if number % 2 == 0 else list(reversed(contestants))
        for name in order:
            say(f"time-to-loss: {name}, {number + 1} of {plan.repetitions}")
            outcome = contestants[name](number)
            outcomes[name].append(outcome)
            say(f"time-to-loss: {name}: {outcome['seconds']:.1f} s, loss {outcome['loss']:.4f}")
    return Measured(_rows(plan, outcomes), dict(outcomes))


def _rows(plan: Plan, outcomes: dict[str, list[Outcome]]) -> list[Row]:
    """The time counts only if every repetition reached the loss with the given size."""
    ours = outcomes["ours"]
    loss = limited(
        "time-to-loss: worst loss of all repetitions, as evaluated",
        "nats",
        max(outcome["loss"] for outcome in ours),
        at_most(plan.loss),
    )
    size = limited(
        "time-to-loss: parameters",
        "",
        max(outcome["parameters"] for outcome in ours),
        at_most(plan.parameters),
    )
    seconds = [outcome["seconds"] for outcome in ours]
    work = f"time to a loss of {plan.loss:g}, the whole process"
    theirs = outcomes.get("nanoGPT")
    if not theirs:
        return [Row(work, "s", median(seconds)), loss, size]
    time_row = compared(work, "s", seconds, "nanoGPT", [o["seconds"] for o in theirs], TARGET)
    kept = bool(loss.reached and size.reached)
    return [
        time_row._replace(reached=bool(time_row.reached and kept)),
        loss._replace(peer="nanoGPT", theirs=max(outcome["loss"] for outcome in theirs)),
        size._replace(peer="nanoGPT", theirs=max(outcome["parameters"] for outcome in theirs)),
    ]


def _train_ours(plan: Plan, text: Path, number: int) -> Outcome:
    """Run in a new assets folder, without prepared data."""
    assets = plan.folder / f"assets_{number}"
    values = {"python": sys.executable, "text": text, "seed": number}
    command = [part.format(**values) for part in shlex.split(plan.ours_command or OURS)]
    seconds = _time(command, REPOSITORY_ROOT, {"RESEARCH_ASSETS_DIR": str(assets)})
    runs = list(assets.glob("outputs/runs/*/checkpoints"))
    tokenizers = list(assets.glob("datasets/*/tokens/*/tokenizer.json"))
    if len(runs) != 1 or len(tokenizers) != 1 or not steps_in(runs[0]):
        raise ExperimentError(
            f"{shlex.join(command)} left {len(runs)} runs and {len(tokenizers)} tokenizers",
            "it must train one experiment to the end",
        )
    last = runs[0] / f"step_{steps_in(runs[0])[-1]}"
    return {"seconds": seconds} | _judge("ours", last, text, tokenizer=tokenizers[0])


def _prepare_nanogpt(folder: Path, text: Path, copy: Path) -> Path:
    """A copy of `folder` with `text` prepared by its own prepare.py, which is not timed."""
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns(".git"))
    data = copy / "data" / "shakespeare_char"
    shutil.copyfile(text, data / "input.txt")
    _time([sys.executable, "prepare.py"], data)
    return copy


def _train_nanogpt(copy: Path, text: Path) -> Outcome:
    output = copy / "out-shakespeare-char"
    shutil.rmtree(output, ignore_errors=True)
    command = shlex.split(NANOGPT.format(python=shlex.quote(sys.executable)))
    seconds = _time(command, copy)
    return {"seconds": seconds} | _judge("nanogpt", output / "ckpt.pt", text, nanogpt=copy)


def _time(command: Sequence[str], folder: Path, variables: dict[str, str] | None = None) -> float:
    """Seconds from start to end of the process. Raises ExperimentError if it fails."""
    with tempfile.TemporaryFile("w+") as output:  # an unread pipe would block it
        started = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | (variables or {}),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            code = process.wait()
            seconds = time.perf_counter() - started
        finally:
            process.kill()
            process.wait()
        if code != 0:
            raise ExperimentError(f"{shlex.join(command)} failed: {last_line(output)}")
    return seconds


def _judge(kind: str, checkpoint: Path, text: Path, **options: Path) -> Outcome:
    command = module_command(sys.executable, "evaluate_checkpoint", text=text, **options)
    output = run_process([*command, kind, str(checkpoint)], os.environ)
    evaluated: Outcome = json.loads(output.splitlines()[-1])
    return evaluated
