"""Check that we and nanoGPT train the same network: losses over some steps from equal weights."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from tools.benchmarks.plan import Plan
from tools.benchmarks.processes import run_process
from tools.benchmarks.ratios import Measured, Row, at_most, limited
from tools.benchmarks.results import say
from tools.benchmarks.turns import Contestant

_SAME = 1e-4  # nats; in fp32 they differ only by the order of summation
_ALIKE = 0.02  # nats; in the measured precision


def measure_agreement(plan: Plan, network: str) -> Measured:
    """Compare nanoGPT with the targets of our model (see nanogpt.py) and ours, step by step."""
    say(f"tokens, {network}: do the losses agree?")
    steps, weights = plan.agreement_steps, plan.folder / f"{network}.safetensors"
    theirs = losses(plan.of_nanogpt(network, steps=steps, save_weights=weights, as_ours=True))
    same = losses(plan.ours(network, steps=steps, weights=weights))
    timed = losses(
        plan.ours(network, steps=steps, weights=weights, precision="auto", compile="auto")
    )
    work = f"{network}: largest difference of the loss over {steps} steps"
    row = Row(f"{network}: loss of step {steps} in fp32", "nats", same[-1], "nanoGPT", theirs[-1])
    rows = [
        row,
        limited(f"{work}, fp32", "nats", _difference(same, theirs), at_most(_SAME)),
        limited(f"{work}, as measured below", "nats", _difference(timed, theirs), at_most(_ALIKE)),
    ]
    return Measured(rows, {"nanoGPT": theirs, "ours fp32": same, "ours": timed})


def losses(contestant: Contestant) -> list[float]:
    """Losses of every step of a contestant with `--steps`."""
    found: list[float] = run_steps(contestant)["losses"]
    return found


def run_steps(contestant: Contestant) -> dict[str, Any]:
    """The final report of a contestant with `--steps`."""
    output = run_process(contestant.command, {**os.environ, **contestant.variables})
    message: dict[str, Any] = json.loads(output.splitlines()[-1])
    return message


def _difference(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return max(abs(mine - other) for mine, other in zip(ours, theirs, strict=True))
