"""Overhead of logging, the progress bar and callbacks per step."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from statistics import median
from typing import Any

from common.errors import ExperimentError
from common.utils.paths import REPOSITORY_ROOT
from tools.benchmarks.plan import Plan
from tools.benchmarks.ratios import Measured, Row, at_most, compared
from tools.benchmarks.results import say
from tools.benchmarks.turns import module_command

TARGET = at_most(1.02)


def measure_overhead(plan: Plan) -> Measured:
    """Measure the first network of the plan, by default the smallest, where overhead matters most."""
    network, steps = plan.networks[0], plan.overhead_steps
    say(f"overhead, {network}: {plan.overhead_pairs} pairs of blocks of {steps} steps")
    command = module_command(
        sys.executable,
        "overhead_steps",
        network=network,
        tokens=plan.tokens(network),
        pairs=plan.overhead_pairs,
        steps=steps,
    )
    output = _run_on_terminal(command, {"RESEARCH_ASSETS_DIR": str(plan.folder / "overhead")})
    seconds: dict[str, list[float]] = json.loads(output.splitlines()[-1])
    with_all, without = ([1e3 * s / steps for s in seconds[key]] for key in ("with", "without"))
    row = compared(
        f"{network}: step with logging, progress bar, store and TensorBoard",
        "ms",
        with_all,
        "ours without them",
        without,
        TARGET,
    )
    extra = 1e3 * median(more - less for more, less in zip(with_all, without, strict=True))
    return Measured([row, Row(f"{network}: that is, per step", "us", extra)], dict(seconds))


def _run_on_terminal(command: Sequence[str], variables: dict[str, str]) -> str:
    """Output of the process, with a terminal as stderr that is read and discarded."""
    ours, theirs = pty.openpty()
    shown: list[bytes] = []
    reader = threading.Thread(target=_read_all, args=(ours, shown), daemon=True)
    process = subprocess.Popen(
        command,
        cwd=REPOSITORY_ROOT,
        env=os.environ | variables | {"TERM": "xterm"},
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
    )
    os.close(theirs)
    reader.start()
    try:
        output, _ = process.communicate()
    finally:
        process.kill()
        process.wait()
        reader.join()
        os.close(ours)
    if process.returncode != 0:
        last = b"".join(shown).decode(errors="replace").strip().splitlines()[-1:]
        raise ExperimentError(f"measuring the overhead failed: {''.join(last)}")
    return output


def _read_all(terminal: int, shown: list[Any]) -> None:
    """Read into `shown` until the process closes its end."""
    with suppress(OSError):  # Linux says EIO there
        while data := os.read(terminal, 65536):
            shown[:] = [*shown[-20:], data]
