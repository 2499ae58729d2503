"""Training under attack: real processes killed at random and at chosen moments, damaged checkpoints,
full disks, signals in every phase, wrong arguments. Whatever happens, a resume ends bit for bit as
the run that nobody disturbed. Minutes, so all are slow.

The processes are in training_attackers.py.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from common.models import Decoder
from common.training import checkpoint, probe
from common.utils import query_experiments
from common.utils.experiment_storage import store
from common.utils.files import sha256_of
from common.utils.paths import REPOSITORY_ROOT, get_assets_dir, get_runs_dir
from common.utils.seeding import get_rng_state
from common.utils.system_metrics import SYSTEM_METRICS
from tests.common.training.test_resume import Lab, Process, process_lives

pytestmark = pytest.mark.slow
ATTACKERS = Path(__file__).with_name("training_attackers.py")
KILLS = int(os.environ.get("TRAINING_ATTACK_KILLS", "30"))
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
    """A laboratory whose processes can be struck at a moment, see training_attackers.py."""

    wholes: dict[str, tuple[Remains, float]] = field(default_factory=dict)

    def start(
        self,
        *arguments: str,
        script: str = "train.py",
        cwd: Path | None = None,
        strikes: tuple[dict[str, Any], ...] = (),
        threads: int | None = None,
        **_: Any,
    ) -> Process:
        log = self.folder / f"output_{len(self.processes)}.txt"
        order = {
            "script": str(REPOSITORY_ROOT / "projects" / "baseline" / script),
            "arguments": arguments,
            "cwd": str(cwd or self.folder),
            "environment": {"RESEARCH_ASSETS_DIR": os.environ["RESEARCH_ASSETS_DIR"]},
            "log": str(log),
            "strikes": strikes,
            "threads": threads,
        }
        self.processes.append(Process(self, self.ask(order), log))
        return self.processes[-1]


def call(target: str, count: int = 1, after: bool = False, number: int = signal.SIGKILL) -> Any:
    """A strike at the `count`-th call of `common.training.<target>`."""
    place = f"common.training.{target}"
    return {"call": place, "count": count, "after": after, "signal": int(number)}


def change(text: str, count: int, number: int = signal.SIGKILL) -> Any:
    """A strike before the `count`-th time that a file whose path contains `text` is opened or changed."""
    return {"change": text, "count": count, "signal": int(number)}


@pytest.fixture(scope="module")
def shared_attack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attack]:
    folder = tmp_path_factory.mktemp("attack")
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "ran", "dog", "sun"]
    draw = random.Random(0)
    (folder / "text.txt").write_text(" ".join(draw.choice(words) for _ in range(1500)))
    (folder / "config.yaml").write_text(CONFIG.replace("TEXT", str(folder / "text.txt")))
    server = subprocess.Popen(
        [sys.executable, str(ATTACKERS)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY_ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY_ROOT)},
    )
    attack = Attack(folder, server)
    try:
        yield attack
    finally:
        for process in attack.processes:
            if process.code is None and process_lives(process.pid):
                process.signal(signal.SIGKILL)
        server.kill()
        server.wait()


@pytest.fixture
def attack(shared_attack: Attack, assets_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Attack:
    """After `assets_dir`, so that this process looks where the others write."""
    monkeypatch.setenv("RESEARCH_ASSETS_DIR", str(shared_attack.folder / "assets"))
    return shared_attack


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
    assert found.samples == expected.samples
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


def test_the_runs_that_are_attacked_have_something_to_lose(attack: Attack) -> None:
    found = {variant: whole(attack, variant)[0] for variant in VARIANTS}
    assert list(found["adamw"].checkpoints) == ["step_15", "step_24", "step_25"], "stopped early"
    assert list(found["muon"].checkpoints) == ["step_35", "step_36", "step_40"]
    assert json.loads(found["adamw"].best)["step"] == 15
    for optimizer in ("adamw", "muon"):
        assert_same(found[f"{optimizer}_background"], found[optimizer])
    tensors = checkpoint.load_checkpoint(checkpoints("whole_muon") / "step_40").tensors
    kinds = {key.split(".")[0] + "." + key.split(".")[-1] for key in tensors}
    assert {"optimizer.momentum_buffer", "optimizer.exp_avg_sq", "rng.torch"} <= kinds
    assert any(key.startswith("trained.") for key in tensors)


# --- kills -----------------------------------------------------------------------------------------

# (function, calls in a whole run): the places where a kill hurts most.
MOMENTS = {
    "trainer:Trainer._backward": 120,
    "trainer:Trainer._update_weights": 40,
    "ema:WeightAverage.update": 40,
    "ema:WeightAverage._swap": 16,
    "trainer:Trainer._log": 13,
    "evaluator:Evaluator.evaluate": 8,
    "evaluator:Evaluator.generate_samples": 8,
    "callbacks.early_stopping:EarlyStopping.on_evaluate": 8,
    "checkpoint:CheckpointWriter.write": 16,
    "checkpoint:_write_files": 16,
    "checkpoint:fsync_file": 64,
    "checkpoint:fsync_dir": 32,
    "checkpoint:delete_old_checkpoints": 16,
    "checkpoint:mark_best": 8,
    "checkpoint:unpack_optimizer": 1,
    "ema:WeightAverage.load": 1,
    "callbacks.samples:Samples.on_train_start": 1,
    "trainer:Trainer.resume": 1,
}
# What comes only with a resume is struck more often than its share of the time.
IN_A_RESUME = [moment for moment, calls in MOMENTS.items() if calls == 1]


def draw_strike(draw: random.Random, name: str, resuming: bool) -> tuple[str, Any]:
    """(where the kill is aimed at, the strike); a strike of None is a time."""
    kind = draw.choice(["time", "call", "call", "change"])
    if kind == "change":
        return "change of a file", change(f"runs/{name}", draw.randint(1, 60 if resuming else 150))
    if kind == "call":
        moment = draw.choice(IN_A_RESUME if resuming and draw.random() < 0.25 else list(MOMENTS))
        count = draw.randint(1, max(1, MOMENTS[moment] // (4 if resuming else 2)))
        return moment, call(moment, count, after=draw.random() < 0.5)
    return "time", None


def run_until_killed(
    attack: Attack, draw: random.Random, name: str, variant: str, resuming: bool
) -> tuple[str, Process]:
    place, strike = draw_strike(draw, name, resuming)
    arguments = ["--config", "config.yaml", "--name", name, *VARIANTS[variant]]
    process = attack.start(
        *arguments, *(["--resume"] if resuming else []), strikes=(strike,) if strike else ()
    )
    if strike is None:
        time.sleep(draw.random() * whole(attack, variant)[1])
        process.signal(signal.SIGKILL)
    process.wait()
    return place, process


def test_runs_killed_at_any_moment_end_as_if_nothing_had_happened(attack: Attack) -> None:
    """`TRAINING_ATTACK_KILLS` real kills, up to four in a row of one run, then the run is finished."""
    seed = int(os.environ.get("TRAINING_ATTACK_SEED", "0"))
    draw = random.Random(seed)
    killed: Counter[str] = Counter()
    runs = resumes = 0
    started = time.monotonic()
    while killed.total() < KILLS:
        variant = list(VARIANTS)[runs % len(VARIANTS)]
        name = f"killed_{runs}"
        runs += 1
        process = None
        for number in range(draw.randint(1, 4)):
            place, process = run_until_killed(attack, draw, name, variant, number > 0)
            resumes += number > 0
            if process.code == 0:  # it was over before its moment came
                break
            assert process.code == -signal.SIGKILL, (place, process.output)
            killed[place] += 1
            if not store.exists(name) or store.is_finished(name):
                break  # killed before it had a name, or after everything was done
        assert process is not None
        if not store.exists(name):
            process = train(attack, name, variant)
        elif process.code != 0 and not store.is_finished(name):
            resumes += 1
            process = resume(attack, name, "--config", "config.yaml", *VARIANTS[variant])
        assert process.code in (0, -signal.SIGKILL), (seed, name, process.output)
        assert_same(remains(name), whole(attack, variant)[0])
    seconds = time.monotonic() - started
    print(f"\n{killed.total()} kills, {resumes} resumes, {runs} runs compared, {seconds:.0f} s")
    print(", ".join(f"{place} {count}" for place, count in killed.most_common()))


@pytest.mark.parametrize("count", [1, 5, 6])
def test_a_kill_while_an_old_checkpoint_is_deleted_leaves_no_half_of_it(
    attack: Attack, count: int
) -> None:
    """The sixth folder is deleted after the last save: nothing but the resume comes after it."""
    name = f"deleting_{count}"
    strike = {"call": "os:rmdir", "count": count, "after": False, "signal": int(signal.SIGKILL)}
    assert train(attack, name, "adamw", strikes=(strike,)).code == -signal.SIGKILL
    process = resume(attack, name)
    assert process.code == 0, process.output
    assert_same(remains(name), whole(attack, "adamw")[0])


# --- damage ----------------------------------------------------------------------------------------


def killed_with_two_checkpoints(attack: Attack, name: str, variant: str = "muon") -> list[Path]:
    """A run that was killed after some saves: its checkpoints, the newest last."""
    strike = call("checkpoint:delete_old_checkpoints", 7, after=True)
    assert train(attack, name, variant, strikes=(strike,)).code == -signal.SIGKILL
    paths = [checkpoints(name) / f"step_{step}" for step in checkpoint.steps_in(checkpoints(name))]
    assert len(paths) >= 2
    return paths


FILES = ["model.safetensors", "training.safetensors", "state.json", "SHA256SUMS"]


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_byte_and_every_cut_is_found(
    attack: Attack, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of small files and of the header of large ones every byte, else a sample."""
    run = "flipped"
    if not checkpoints(run).exists():
        killed_with_two_checkpoints(attack, run)
    *_, before, newest = checkpoint.steps_in(checkpoints(run))
    file = checkpoints(run) / f"step_{newest}" / name
    content = file.read_bytes()
    draw = random.Random(1)
    positions = set(range(min(len(content), 2500))) | set(
        draw.sample(range(len(content)), 300 if len(content) > 300 else len(content))
    )
    try:
        for position in sorted(positions):
            damaged = bytearray(content)
            damaged[position] ^= 1 << draw.randrange(8)
            for text in (bytes(damaged), content[:position]):
                file.write_bytes(text)
                with pytest.raises(checkpoint.CheckpointError, match=f"step_{newest} is damaged"):
                    checkpoint.verify(file.parent)
        capsys.readouterr()
        found = checkpoint.latest_checkpoint(checkpoints(run))
        assert found is not None and found.state["step"] == before
        assert f"step_{newest} is damaged" in capsys.readouterr().err
    finally:
        file.write_bytes(content)
    checkpoint.verify(file.parent)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def change_a_number(path: Path) -> None:
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps(state | {"tokens": state["tokens"] + 1}, indent=2))


def empty(path: Path) -> None:
    for file in path.iterdir():
        file.unlink()


def become_a_file(path: Path) -> None:
    empty(path)
    path.rmdir()
    path.write_text("a checkpoint")


DAMAGES = {
    "flip in the weights": lambda path: flip(path / "model.safetensors"),
    "flip in the sums": lambda path: flip(path / "SHA256SUMS"),
    "cut": lambda path: os.truncate(path / "training.safetensors", 1000),
    "missing": lambda path: (path / "training.safetensors").unlink(),
    "no sums": lambda path: (path / "SHA256SUMS").unlink(),
    "extra file": lambda path: (path / "notes.txt").write_text("good one"),
    "extra folder": lambda path: (path / "notes").mkdir(),
    "another number": change_a_number,
    "empty": empty,
    "a file": become_a_file,
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_training_goes_on_from_the_checkpoint_before_a_damaged_one(
    attack: Attack, kind: str
) -> None:
    name = f"damaged_{list(DAMAGES).index(kind)}"
    *_, newest = killed_with_two_checkpoints(attack, name)
    DAMAGES[kind](newest)
    process = resume(attack, name)
    assert process.code == 0, process.output
    warnings = [line for line in process.output.splitlines() if "warning" in line]
    assert len(warnings) == 1 and newest.name in warnings[0]
    assert "trying the one before" in warnings[0]
    assert_same(remains(name), whole(attack, "muon")[0])


def test_training_starts_again_when_every_checkpoint_is_damaged(attack: Attack) -> None:
    name = "all_damaged"
    paths = killed_with_two_checkpoints(attack, name)
    for path in paths:
        flip(path / "state.json")
    process = resume(attack, name)
    assert process.code == 0, process.output
    assert process.output.count("warning") == len(paths) and "from the beginning" in process.output
    assert_same(remains(name), whole(attack, "muon")[0])


@pytest.mark.parametrize("content", ["", "{", "[]", '{"step": "x"}', '{"step": 16, "loss": 0.1}'])
def test_the_mark_of_the_best_checkpoint_is_written_again(attack: Attack, content: str) -> None:
    """The run has its best behind it when it is killed, and comes to no better one."""
    name = f"marked_{len(content)}"
    strike = call("trainer:Trainer._log", 7)  # at step 21
    assert train(attack, name, "adamw", strikes=(strike,)).code == -signal.SIGKILL
    (checkpoints(name) / "best.json").write_text(content)
    if content != '{"step": 16, "loss": 0.1}':
        process = attack.run("--name", name, script="evaluate.py")
        assert process.code == 2 and "best.json" in process.output
    process = resume(attack, name)
    assert process.code == 0, process.output
    assert_same(remains(name), whole(attack, "adamw")[0])


def test_a_mark_is_forgotten_with_the_checkpoints_before_it(attack: Attack) -> None:
    name = "forgotten"
    strike = call("checkpoint:delete_old_checkpoints", 7, after=True)
    assert train(attack, name, "muon", strikes=(strike,)).code == -signal.SIGKILL
    for step in checkpoint.steps_in(checkpoints(name)):
        flip(checkpoints(name) / f"step_{step}" / "state.json")
    (checkpoints(name) / "best.json").write_text("?")
    process = resume(attack, name)
    assert process.code == 0, process.output
    assert_same(remains(name), whole(attack, "muon")[0])


# --- another configuration, other data -------------------------------------------------------------


def error_of(process: Process) -> str:
    """The one line that says what is wrong; exit code 2, no traceback."""
    assert process.code == 2, process.output
    assert "Traceback" not in process.output
    (error,) = [line for line in process.output.splitlines() if line.startswith("error [")]
    return error


@dataclass(frozen=True)
class Override:
    """What is changed with --resume-anyway, and what must be true of the last checkpoint then."""

    change: str
    told: str
    effect: Any


OVERRIDES = [
    Override(
        "optimizer.lr=0.05", "optimizer.lr: 0.001 -> 0.05", lambda s: s[0]["initial_lr"] == 0.05
    ),
    Override("optimizer.betas=[0.5,0.6]", "optimizer.betas", lambda s: s[0]["betas"] == [0.5, 0.6]),
    Override("optimizer.muon_lr=0.5", "0.02 -> 0.5", lambda s: s[2]["initial_lr"] == 0.5),
    Override("training.precision=bf16", "fp32 -> bf16", lambda s: s[2]["dtype"] == "bfloat16"),
]


@pytest.mark.parametrize("override", OVERRIDES, ids=lambda override: override.change)
def test_what_is_overridden_takes_effect_and_is_recorded(
    attack: Attack, override: Override
) -> None:
    name = f"overridden_{OVERRIDES.index(override)}"
    killed_with_two_checkpoints(attack, name)
    error = error_of(attack.run("--name", name, "--resume", override.change))
    assert "another configuration" in error and override.told in error
    process = attack.run("--name", name, "--resume-anyway", override.change)
    assert process.code == 0, process.output
    assert "resuming with another configuration" in process.output
    assert override.told in process.output
    state = checkpoint.load_checkpoint(checkpoints(name) / f"step_{MAX_STEPS}").state
    assert override.effect(state["param_groups"])
    key, value = override.change.split("=")
    config = query_experiments(f"SELECT config FROM runs WHERE name = '{name}'")["config"][0]
    text = (get_runs_dir() / name / "config.yaml").read_text()
    section, field_name = key.split(".")
    assert json.dumps(json.loads(config)[section][field_name]).replace(" ", "").strip('"') == value
    assert value.strip("[]").split(",")[0] in text


def test_a_resume_after_an_override_keeps_to_it(attack: Attack) -> None:
    name = "overridden_twice"
    killed_with_two_checkpoints(attack, name)
    more = ("--name", name, "--resume-anyway", "optimizer.lr=0.05")
    strike = call("trainer:Trainer._log", 3)
    assert attack.run(*more, strikes=(strike,)).code == -signal.SIGKILL
    process = attack.run("--name", name, "--resume")
    assert process.code == 0, process.output
    killed_with_two_checkpoints(attack, "overridden_once")
    process = attack.run("--name", "overridden_once", *more[2:])
    assert process.code == 0, process.output
    assert_same(remains(name), remains("overridden_once"))


@pytest.mark.parametrize(
    "change",
    [
        "optimizer.name=adamw",
        "optimizer.lr_factors={'blocks.0.*': 2.0}",
        "optimizer.weight_decay=0",
        "model.hidden_size=32",
    ],
)
def test_what_no_saved_state_fits_is_refused_even_then(attack: Attack, change: str) -> None:
    name = "unfit"
    if not checkpoints(name).exists():
        killed_with_two_checkpoints(attack, name)
    process = attack.run("--name", name, "--resume-anyway", change)
    assert "fit" in error_of(process)


def test_the_state_of_a_parameter_is_never_given_to_another(attack: Attack) -> None:
    """As many groups of as many parameters of the same shapes, but others."""
    name = "regrouped"
    strike = call("trainer:Trainer._log", 7)
    factors = "optimizer.lr_factors={{'final_norm.{}': 2.0}}"
    process = train(attack, name, "muon", factors.format("weight"), strikes=(strike,))
    assert process.code == -signal.SIGKILL, process.output
    process = train(attack, name, "muon", factors.format("bias"), "--resume-anyway")
    assert "grouped in another way" in error_of(process)


def test_an_average_can_be_given_up_and_begun_on_the_way(attack: Attack) -> None:
    """Given up, training goes on from the trained weights, not from their average."""
    strike = call("checkpoint:delete_old_checkpoints", 7, after=True)
    trained: dict[str, dict[str, str]] = {}
    for name, first, then in (("ended", "0.9", "null"), ("begun", "null", "0.9")):
        process = train(attack, name, "muon", f"training.ema_decay={first}", strikes=(strike,))
        assert process.code == -signal.SIGKILL
        process = attack.run("--name", name, "--resume-anyway", f"training.ema_decay={then}")
        assert process.code == 0, process.output
        found = checkpoint.load_checkpoint(checkpoints(name) / "step_40")
        averaged = checkpoint.with_prefix(found.tensors, "trained.")
        assert bool(averaged) == (name == "begun")
        weights = averaged or checkpoint.load_file(found.path / "model.safetensors")
        trained[name] = {key: sha256(value.numpy()).hexdigest() for key, value in weights.items()}
    whole(attack, "muon")
    expected = checkpoint.load_checkpoint(checkpoints("whole_muon") / "step_40").tensors
    for key, value in checkpoint.with_prefix(expected, "trained.").items():
        digest = sha256(value.numpy()).hexdigest()
        assert trained["ended"][key] == trained["begun"][key] == digest


def test_other_data_is_refused_and_can_be_taken_anyway(attack: Attack) -> None:
    name = "other_data"
    killed_with_two_checkpoints(attack, name)
    text = attack.folder / "text.txt"
    content = text.read_text()
    text.write_text(content.replace("cat", "tac"))
    try:
        error = error_of(resume(attack, name))
        assert "other data" in error and "->" in error
        process = attack.run("--name", name, "--resume-anyway")
        assert process.code == 0 and "resuming on other data" in process.output
    finally:
        text.write_text(content)


def test_another_number_of_threads_is_told(attack: Attack) -> None:
    name = "threads"
    killed_with_two_checkpoints(attack, name)
    process = attack.run("--name", name, "--resume", threads=2)
    assert process.code == 0 and "threads was 1 and is 2" in process.output


# --- wrong arguments, and more than one process ----------------------------------------------------

WRONG = {
    "optimizer.name=foo": "expected 'adamw' or 'muon', got 'foo'",
    "optimizer.betas=[0.9,1.0]": "optimizer.betas.1: expected less than 1",
    "optimizer.lr_factors={'nothing.*':2.0}": "no parameter has a name like 'nothing.*'",
    "optimizer.lr_factors={'token_embedding.*':-1.0}": "greater than or equal to 0",
    "optimizer.lr_factors={'token_embedding.*':true}": "expected a number, got true",
    "schedule.decay_fraction=0": "schedule.decay_fraction: expected greater than 0, got 0",
    "schedule.name=triangle": "'cosine', 'linear', 'constant' or 'wsd'",
    "training.precision=fp8": "'fp32', 'tf32', 'bf32', 'bf16' or 'fp16', got 'fp8'",
    "training.precision=fp16": "cpu has no fp16",
    "training.ema_decay=1.5": "training.ema_decay: expected less than 1, got 1.5",
    "training.compile=maybe": "training.compile: expected 'auto', True or False, got 'maybe'",
    "training.profile_steps=[5,2]": "1 <= first <= last",
    "training.profile_steps=[50,60]": "after max_steps 40",
    "training.device=cuda": "cuda",
    "device=cuda": "unknown key 'device'",
    "training.save_in_background=maybe": "expected boolean, got 'maybe'",
    "samples.prompts=[]": "samples.prompts: expected",
    "model.context_length=100000": "the text has 5011 tokens",
}


@pytest.mark.parametrize("argument", WRONG)
def test_a_wrong_argument_is_one_clear_line_and_nothing_is_created(
    attack: Attack, argument: str
) -> None:
    if "cuda" in argument and torch.cuda.is_available():
        pytest.skip("there is a card")
    name = f"wrong_{list(WRONG).index(argument)}"
    process = train(attack, name, "muon", argument)
    assert WRONG[argument] in error_of(process)
    assert process.output.count("\n") <= 2, process.output
    assert not store.exists(name) and not (get_runs_dir() / name).exists()


def test_of_two_processes_that_resume_one_run_the_second_is_refused(attack: Attack) -> None:
    name = "twice"
    killed_with_two_checkpoints(attack, name)
    both = [attack.start("--name", name, "--resume") for _ in range(2)]
    codes = [process.wait() for process in both]
    assert sorted(codes) == [0, 2], [process.output for process in both]
    error = error_of(both[codes.index(2)])
    # It waits a little: until then the first one may have come to its end.
    assert "is running in another process" in error or "is finished" in error
    assert_same(remains(name), whole(attack, "muon")[0])


# --- a full disk -----------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["muon", "muon_background"])
def test_a_disk_that_runs_full_ends_in_one_line_and_the_run_goes_on_with_more_space(
    attack: Attack, small_disk: SmallDisk, variant: str
) -> None:
    name = f"full_{variant}"
    disk = small_disk("512k")
    get_runs_dir().mkdir(parents=True, exist_ok=True)
    (get_runs_dir() / name).symlink_to(disk)
    process = train(attack, name, variant, "training.keep_checkpoints=1000")
    assert "cannot save" in error_of(process) and "space" in process.output
    steps = checkpoint.steps_in(disk / "checkpoints")
    assert len(steps) >= 3 and steps[-1] < MAX_STEPS
    for step in steps:
        checkpoint.verify(disk / "checkpoints" / f"step_{step}")
    assert [path.name for path in (disk / "checkpoints").glob(".*")] == []
    small_disk("64m")
    process = resume(attack, name)
    assert process.code == 0, process.output
    assert_same(remains(name), whole(attack, variant)[0], final_only=True)


@pytest.mark.parametrize("variant", ["muon", "muon_background"])
def test_a_full_disk_that_holds_the_log_too(
    attack: Attack, small_disk: SmallDisk, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = whole(attack, variant)[0]
    monkeypatch.setenv("RESEARCH_ASSETS_DIR", str(small_disk("600k")))
    name = "all_on_it"
    process = train(attack, name, variant, "training.keep_checkpoints=1000")
    assert "space" in error_of(process), process.output
    small_disk("64m")
    process = resume(attack, name)
    assert process.code == 0, process.output
    assert_same(remains(name), expected, final_only=True)


# --- signals ---------------------------------------------------------------------------------------

PHASES = {
    "a pass of an accumulation": call("trainer:Trainer._backward", 50, number=0),
    "the update": call("trainer:Trainer._update_weights", 14, number=0),
    "a save": call("checkpoint:_write_files", 6, number=0),
    "the end of a save": call("checkpoint:delete_old_checkpoints", 6, number=0),
    "an evaluation": call("evaluator:Evaluator.evaluate", 3, number=0),
    "sampling": call("evaluator:Evaluator.generate_samples", 3, number=0),
    "the evaluation that stops training": call("evaluator:Evaluator.evaluate", 5, number=0),
    "the last evaluation": call("evaluator:Evaluator.evaluate", 6, number=0),
    "the last save": call("checkpoint:_write_files", 10, number=0),
}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("phase", PHASES)
def test_a_signal_in_any_phase_is_obeyed_and_the_run_goes_on_exactly(
    attack: Attack, phase: str, number: signal.Signals
) -> None:
    """One optimizer stops early, so that six evaluations and ten saves are all."""
    for variant in ("adamw", "adamw_background"):
        name = f"signal_{list(PHASES).index(phase)}_{number.name}_{variant}"
        process = train(attack, name, variant, strikes=(PHASES[phase] | {"signal": number},))
        assert process.code == 128 + number, (process.code, process.output)
        assert "Traceback" not in process.output
        last_line = process.output.strip().splitlines()[-1]
        assert "interrupted at step" in last_line and f"--name {name} --resume" in last_line
        assert status(name) == "interrupted"
        newest = checkpoint.steps_in(checkpoints(name))[-1]
        assert f"interrupted at step {newest}," in last_line
        process = resume(attack, name)
        assert process.code == 0, process.output
        assert_same(remains(name), whole(attack, variant)[0], final_only=True)


@pytest.mark.parametrize("variant", ["adamw", "adamw_background"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_the_run_at_once(
    attack: Attack, variant: str, number: signal.Signals
) -> None:
    """In the same optimizer step, which is lost then, and in the save that the first one led to."""
    for place in ("trainer:Trainer._backward", "checkpoint:fsync_file"):
        name = f"second_{number.name}_{variant}_{place[:7]}"
        first = call("trainer:Trainer._backward", 50, number=number)
        second = call(place, 51 if "trainer" in place else 31, number=number)
        process = train(attack, name, variant, strikes=(first, second))
        assert process.code == (130 if number == signal.SIGINT else -signal.SIGTERM)
        assert "Traceback" not in process.output
        assert status(name) == ("interrupted" if number == signal.SIGINT else "died")
        process = resume(attack, name)
        assert process.code == 0, process.output
        assert_same(remains(name), whole(attack, variant)[0], final_only=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "place",
    [
        "trainer:Trainer.resume",
        "checkpoint:unpack_optimizer",
        "callbacks.samples:Samples.on_train_start",
    ],
)
def test_a_signal_in_a_resume_changes_nothing(
    attack: Attack, place: str, number: signal.Signals
) -> None:
    name = f"resuming_{place.rpartition('.')[2][-8:]}_{number.name}"
    killed_with_two_checkpoints(attack, name)
    strike = call(place, number=number)
    process = attack.run("--name", name, "--resume", strikes=(strike,))
    assert process.code == (130 if number == signal.SIGINT else -signal.SIGTERM), process.output
    assert "Traceback" not in process.output
    process = resume(attack, name)
    assert process.code == 0, process.output
    assert_same(remains(name), whole(attack, "muon")[0])


def status(name: str) -> str:
    return str(query_experiments(f"SELECT status FROM runs WHERE name = '{name}'")["status"][0])


# --- the measurement behind `precision: auto` ------------------------------------------------------

AUTO = ["training.precision=auto", "training.compile=auto"]


class Counting(Decoder):
    """Has what a forward pass changes: a buffer, and gradients that were there before."""

    def __init__(self, vocab_size: int, **options: Any) -> None:
        super().__init__(vocab_size, **options)
        self.register_buffer("calls", torch.zeros(()))

    def compute_loss(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return super().compute_loss(input_ids, labels)


def test_measuring_changes_nothing_of_the_model_and_of_chance() -> None:
    torch.manual_seed(3)
    shape = {"num_layers": 1, "num_heads": 2, "hidden_size": 16, "context_length": 8}
    model = Counting(11, dropout=0.5, **shape).train()
    ids = torch.randint(0, 11, (2, 8))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    values, tensors = get_rng_state()
    choice = probe.choose(model, {"input_ids": ids, "labels": ids}, "auto", "auto", 1000)
    assert len(choice.seconds) >= 2, "it did measure"
    assert model.training and all(p.grad is None for p in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    values_after, tensors_after = get_rng_state()
    assert values_after == values
    assert all(torch.equal(tensors_after[name], tensors[name]) for name in tensors)


class OnlyInFull(Counting):
    def compute_loss(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        loss = super().compute_loss(input_ids, labels)
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError("\"geqrf_cpu\" not implemented for 'BFloat16'")
        return loss


def test_a_precision_that_the_model_cannot_be_computed_in_is_not_chosen() -> None:
    shape = {"num_layers": 1, "num_heads": 2, "hidden_size": 16, "context_length": 8}
    ids = torch.randint(0, 11, (2, 8))
    model = OnlyInFull(11, **shape)
    choice = probe.choose(model, {"input_ids": ids, "labels": ids}, "auto", "auto", 1000)
    assert "fp32" in choice.seconds and "bf16" not in choice.seconds
    assert float(model.calls) == 0.0 and all(p.grad is None for p in model.parameters())


def test_a_measured_precision_trains_as_the_same_one_by_name(attack: Attack) -> None:
    process = train(attack, "auto", "muon", *AUTO)
    assert process.code == 0 and "measured now" in process.output, process.output
    manifest = json.loads((get_runs_dir() / "auto" / "manifest.json").read_text())
    assert manifest["compiled"] is False
    process = train(attack, "by_name", "muon", f"training.precision={manifest['precision']}")
    assert process.code == 0, process.output
    assert_same(remains("auto"), remains("by_name"))


def test_a_killed_run_keeps_the_precision_that_was_measured(attack: Attack) -> None:
    """Whatever a new measurement says: here the kept one is made to prefer another."""
    strike = call("checkpoint:delete_old_checkpoints", 7, after=True)
    process = train(attack, "kept", "muon", *AUTO, strikes=(strike,))
    assert process.code == -signal.SIGKILL
    precision = json.loads((get_runs_dir() / "kept" / "manifest.json").read_text())["precision"]
    cache = get_assets_dir() / "cache" / "probes.json"
    known = json.loads(cache.read_text())
    other = "bf16" if precision != "bf16" else "fp32"
    for entry in known.values():
        entry["precision"] = other
    cache.write_text(json.dumps(known))
    try:
        process = resume(attack, "kept")
    finally:
        cache.unlink()
    assert process.code == 0, process.output
    assert f"computing in {other}" in process.output
    assert (
        json.loads((get_runs_dir() / "kept" / "manifest.json").read_text())["precision"]
        == precision
    )
    process = train(attack, "not_killed", "muon", f"training.precision={precision}")
    assert_same(remains("kept"), remains("not_killed"))


GARBAGE = [
    "",
    "{",
    "[]",
    "3",
    '{"KEY": 1}',
    '{"KEY": {}}',
    '{"KEY": {"precision": "fp8", "compile": false, "seconds": {"fp8": 0.1}}}',
    '{"KEY": {"precision": "fp16", "compile": false, "seconds": {"fp16": 0.1}}}',
    '{"KEY": {"precision": "fp32", "compile": "no", "seconds": {"fp32": 0.1}}}',
    '{"KEY": {"precision": "fp32", "compile": false, "seconds": {}}}',
    '{"KEY": {"precision": "fp32", "compile": false, "seconds": {"fp32": "fast"}}}',
    '{"KEY": {"precision": "fp32", "compile": false, "seconds": 3}}',
    '{"KEY": {"precision": "fp32", "compile": false, "seconds": {"fp32": 1}, "more": 1}}',
]


def test_a_measurement_that_cannot_be_read_is_made_again(attack: Attack) -> None:
    cache = get_assets_dir() / "cache" / "probes.json"
    cache.unlink(missing_ok=True)
    assert train(attack, "measured", "muon", *AUTO).code == 0
    (key,) = json.loads(cache.read_text())
    for number, content in enumerate(GARBAGE):
        cache.write_text(content.replace("KEY", key))
        process = train(attack, f"garbage_{number}", "adamw", *AUTO)
        assert process.code == 0 and "measured now" in process.output, (content, process.output)
        assert list(json.loads(cache.read_text())) == [key]
    process = train(attack, "garbage_over", "adamw", *AUTO)
    assert process.code == 0 and "measured before" in process.output


def test_where_nothing_can_be_kept_it_is_measured_each_time(attack: Attack) -> None:
    cache = get_assets_dir() / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    cache.write_text("no folder")
    try:
        process = train(attack, "unkept", "adamw", *AUTO)
    finally:
        cache.unlink()
    assert process.code == 0, process.output
    assert "the measurement is not kept" in process.output and "probes.json" in process.output


def test_runs_that_measure_at_the_same_time_do_not_spoil_what_is_kept(attack: Attack) -> None:
    processes = [
        attack.start(
            "--config", "config.yaml", "--name", f"crowd_{size}", *AUTO, f"data.batch_size={size}"
        )
        for size in (2, 3, 5, 6)
    ]
    assert [process.wait() for process in processes] == [0] * 4
    known = json.loads((get_assets_dir() / "cache" / "probes.json").read_text())
    assert known and all(
        set(entry) == {"precision", "compile", "seconds"} for entry in known.values()
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_while_measuring_leaves_a_run_that_can_be_resumed(
    attack: Attack, number: signal.Signals
) -> None:
    (get_assets_dir() / "cache" / "probes.json").unlink(missing_ok=True)
    name = f"measuring_{number.name}"
    process = train(attack, name, "muon", *AUTO, strikes=(call("probe:_pass", 2, number=number),))
    assert process.code == (130 if number == signal.SIGINT else -number), process.output
    assert "Traceback" not in process.output
    assert status(name) == ("interrupted" if number == signal.SIGINT else "died")
    process = resume(attack, name)
    assert process.code == 0, process.output
