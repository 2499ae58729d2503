"""Tokens per second of generation beside Hugging Face's `generate`, on the same GPT-2 weights."""

from __future__ import annotations

import json
import os
import sys
from statistics import median
from typing import Any

from common.errors import ExperimentError
from tools.benchmarks.plan import Plan
from tools.benchmarks.processes import run_process
from tools.benchmarks.ratios import Measured, Row, at_least, at_most, compared
from tools.benchmarks.results import say
from tools.benchmarks.turns import module_command

TARGET = at_least(3.0)
TARGET_READING = at_most(1.3)  # times the duration of reading the weights once
_TOKENS = 512
_SMALL = {"layers": 4, "hidden_size": 128, "heads": 4}
_124M = {"layers": 12, "hidden_size": 768, "heads": 12}


def measure_generation(plan: Plan) -> Measured:
    """Batch 1 and 16 at 4 layers x 128; batch 1 at 124M, beside the time to read its weights."""
    measured = Measured([], {})
    for batch_size in (1, 16):
        found = _generate(batch_size=batch_size, tokens=_TOKENS, rounds=plan.rounds, **_SMALL)
        work = f"generating {_TOKENS} tokens, 4 x 128, batch {batch_size}"
        measured.rows += [_row(work, how, found, batch_size) for how in ("greedy", "sampled")]
        measured.raw[work] = found
    found = _generate(batch_size=1, tokens=64, rounds=plan.rounds, **_124M)
    seconds = found["seconds"]
    per_token = [1e3 * s / 64 for s in seconds["ours greedy"]]
    reading = [1e3 * s for s in seconds["weights"]]
    work = "a token of 124M, batch 1"
    measured.rows.append(
        compared(work, "ms", per_token, "reading its weights", reading, TARGET_READING)
    )
    measured.raw[work] = found
    return measured


def _generate(**options: int) -> dict[str, Any]:
    say(
        f"generation: {options['layers']} x {options['hidden_size']}, batch {options['batch_size']}"
    )
    output = run_process(module_command(sys.executable, "generate_both", **options), os.environ)
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    if not found["same"]:
        raise ExperimentError("our model and Hugging Face's generate different greedy text")
    return found


def _row(work: str, how: str, found: dict[str, Any], batch_size: int) -> Row:
    speeds = {
        who: [batch_size * _TOKENS / s for s in found["seconds"][f"{who} {how}"]]
        for who in ("ours", "theirs")
    }
    peer = f"Hugging Face ({median(speeds['theirs']):.0f} tokens/s)"
    return compared(f"{work}, {how}", "tokens/s", speeds["ours"], peer, speeds["theirs"], TARGET)
