"""The laboratory of the tests that attack training: a small configuration that uses everything, real
processes that are struck at a moment (see fork_server.py), and what a finished run leaves.
"""

from __future__ import annotations

import json
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from common.models import checkpoint
from common.training.checkpoints import steps_in
from common.utils import query_experiments
from common.utils.files import sha256_of
from common.utils.paths import get_runs_dir
from common.utils.system_metrics import SYSTEM_METRICS
from tests.common.training.test_resume import Lab, Process

MAX_STEPS = 40

# Everything at once: whatever the engine carries from step to step is carried here.
CONFIG = f"""
seed: 5
data:
  tokenizer: char
  batch_size: 4
  path: TEXT
model:
  num_layers: 1
  num_heads: 2
  hidden_size: 16
  context_length: 16
  dropout: 0.2
schedule:
  name: wsd
  warmup_steps: 4
  decay_fraction: 0.4
training:
  max_steps: {MAX_STEPS}
  gradient_accumulation_steps: 3
  ema_decay: 0.9
  eval_every_steps: 5
  eval_batches: 2
  checkpoint_every_steps: 4
  keep_checkpoints: 2
  log_every_steps: 3
  early_stopping_patience: 2
  device: cpu
  precision: fp32
  compile: false
samples:
  prompts: ["", "the "]
  max_new_tokens: 6
"""
# The first pair is stopped early by its validation loss, the second pair trains to the end.
VARIANTS = {
    "adamw": ["optimizer.lr=0.3"],
    "adamw_background": ["optimizer.lr=0.3", "training.save_in_background=true"],
    "muon": ["optimizer.name=muon"],
    "muon_background": ["optimizer.name=muon", "training.save_in_background=true"],
}


@dataclass
class Attack(Lab):
    """A laboratory whose processes are struck at a moment, see fork_server.py."""

    wholes: dict[str, tuple[Remains, float]] = field(default_factory=dict)


def call(target: str, count: int = 1, after: bool = False, number: int = signal.SIGKILL) -> Any:
    """A strike at the `count`-th call of `common.<target>`."""
    return {"call": f"common.{target}", "count": count, "after": after, "signal": int(number)}


def change(text: str, count: int, number: int = signal.SIGKILL) -> Any:
    """A strike before the `count`-th time that a file whose path contains `text` is opened or changed."""
    return {"change": text, "count": count, "signal": int(number)}


# --- what a run has left ---------------------------------------------------------------------------


def checkpoints(name: str) -> Path:
    return get_runs_dir() / name / "checkpoints"


@dataclass(frozen=True)
class Remains:
    """Everything of a finished run that is no matter of the clock or of the machine."""

    rows: pd.DataFrame
    samples: bytes
    best: str
    status: str
    checkpoints: dict[str, dict[str, str]]  # {step: {file: sha256}}, state.json as its content


def remains(name: str) -> Remains:
    frame = query_experiments(
        f"SELECT * FROM experiments WHERE experiment_name = '{name}' ORDER BY step, split"
    )
    measured = ["experiment_name", "time", "tokens_per_second", "mfu", *SYSTEM_METRICS]
    found: dict[str, dict[str, str]] = {}
    for path in sorted(checkpoints(name).iterdir()):
        if path.is_dir():
            checkpoint.verify(path)
            state = json.loads((path / "state.json").read_text())
            state["window"].pop("seconds")
            found[path.name] = {"state": json.dumps(state)} | {
                file.name: sha256_of(file) for file in path.glob("*.safetensors")
            }
    return Remains(
        frame.drop(columns=measured, errors="ignore"),
        (get_runs_dir() / name / "samples.jsonl").read_bytes(),
        (checkpoints(name) / "best.json").read_text(),
        str(query_experiments(f"SELECT status FROM runs WHERE name = '{name}'")["status"][0]),
        found,
    )


def assert_same(found: Remains, expected: Remains, *, final_only: bool = False) -> None:
    """`final_only`: a run that was interrupted has saved other steps on its way."""
    last = max(expected.checkpoints, key=lambda step: int(step.removeprefix("step_")))
    assert found.checkpoints[last] == expected.checkpoints[last]
    if not final_only:
        assert found.checkpoints == expected.checkpoints
    pd.testing.assert_frame_equal(found.rows, expected.rows, check_exact=True)
    assert not found.rows.duplicated(["step", "split"]).any()
    drawn = [
        (entry["step"], entry["prompt"]) for entry in map(json.loads, found.samples.splitlines())
    ]
    assert found.samples == expected.samples and len(drawn) == len(set(drawn))
    assert found.best == expected.best
    assert found.status == expected.status == "finished"


def whole(attack: Attack, variant: str) -> tuple[Remains, float]:
    """What the run of a variant leaves when nobody disturbs it, and the seconds that it takes."""
    if variant not in attack.wholes:
        started = time.monotonic()
        process = train(attack, f"whole_{variant}", variant)
        assert process.code == 0, process.output
        attack.wholes[variant] = (remains(f"whole_{variant}"), time.monotonic() - started)
    return attack.wholes[variant]


def train(attack: Attack, name: str, variant: str, *more: str, **options: Any) -> Process:
    arguments = ("--config", "config.yaml", "--name", name, *VARIANTS[variant], *more)
    return attack.run(*arguments, **options)


def resume(attack: Attack, name: str, *more: str, **options: Any) -> Process:
    # With the configuration, because a kill may have come before the run had a copy of it.
    return attack.run("--name", name, "--resume", *more, **options)


def killed_with_two_checkpoints(attack: Attack, name: str, variant: str = "muon") -> list[Path]:
    """A run that was killed after some saves: its checkpoints, the newest last."""
    strike = call("training.checkpoints:delete_old_checkpoints", 7, after=True)
    assert train(attack, name, variant, strikes=(strike,)).code == -signal.SIGKILL
    paths = [checkpoints(name) / f"step_{step}" for step in steps_in(checkpoints(name))]
    assert len(paths) >= 2
    return paths


def error_of(process: Process) -> str:
    """The one line that says what is wrong; exit code 2, no traceback."""
    assert process.code == 2, process.output
    assert "Traceback" not in process.output
    (error,) = [line for line in process.output.splitlines() if line.startswith("error [")]
    return error


def status(name: str) -> str:
    return str(query_experiments(f"SELECT status FROM runs WHERE name = '{name}'")["status"][0])
