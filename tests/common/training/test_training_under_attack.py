"""Training under attack: real processes killed at random and at chosen moments, damaged checkpoints,
full disks, signals in every phase. Whatever happens, a resume ends bit for bit as the run that nobody
disturbed. Minutes, so all are slow.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from common.experiments.names import exists, is_finished
from common.models import checkpoint
from common.training.checkpoints import latest_checkpoint, steps_in
from common.utils.paths import get_runs_dir
from tests.budget import budget, repeat
from tests.common.training.attack_lab import (
    MAX_STEPS,
    VARIANTS,
    Attack,
    Process,
    assert_same,
    call,
    change,
    checkpoints,
    error_of,
    killed_with_two_checkpoints,
    remains,
    resume,
    status,
    train,
    whole,
)
from tests.conftest import SmallDisk

pytestmark = pytest.mark.slow
KILLS = budget(3, 30)


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
    "training.trainer:Trainer._backward": 120,
    "training.trainer:Trainer._update_weights": 40,
    "training.ema:WeightAverage.update": 40,
    "training.ema:WeightAverage._swap": 16,
    "training.trainer:Trainer._log": 13,
    "training.evaluator:Evaluator.evaluate": 8,
    "training.evaluator:Evaluator.generate_samples": 8,
    "training.callbacks.early_stopping:EarlyStopping.on_evaluate": 8,
    "training.checkpoints:CheckpointWriter.write": 16,
    "models.checkpoint:_write_tensors": 16,
    "models.checkpoint:fsync_file": 64,
    "models.checkpoint:fsync_dir": 32,
    "training.checkpoints:delete_old_checkpoints": 16,
    "training.checkpoints:mark_best": 8,
    "training.state:unpack_optimizer": 1,
    "training.ema:WeightAverage.load": 1,
    "training.callbacks.samples:Samples.on_train_start": 1,
    "training.trainer:Trainer.resume": 1,
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


@pytest.mark.attack
def test_runs_killed_at_any_moment_end_as_if_nothing_had_happened(attack: Attack) -> None:
    """`KILLS` real kills, up to four in a row of one run, then the run is finished."""
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
            if not exists(name) or is_finished(name):
                break  # killed before it had a name, or after everything was done
        assert process is not None
        if not exists(name):
            process = train(attack, name, variant)
        elif process.code != 0 and not is_finished(name):
            resumes += 1
            process = resume(attack, name, "--config", "config.yaml", *VARIANTS[variant])
        # Killed after its last record, it is finished by whoever looks at it next: nothing is left to do.
        finished = process.code == 2 and f"'{name}' is finished" in process.output
        assert finished or process.code in (0, -signal.SIGKILL), (seed, name, process.output)
        assert_same(remains(name), whole(attack, variant)[0])
    seconds = time.monotonic() - started
    print(f"\n{killed.total()} kills, {resumes} resumes, {runs} runs compared, {seconds:.0f} s")
    print(", ".join(f"{place} {count}" for place, count in killed.most_common()))


@repeat("count", [6, 1, 5])
def test_a_kill_while_an_old_checkpoint_is_deleted_leaves_no_half_of_it(
    attack: Attack, count: int
) -> None:
    """The sixth folder is deleted after the last save: nothing but the resume comes after it."""
    name = f"deleting_{count}"
    strike = {"call": "os:rmdir", "count": count, "after": False, "signal": int(signal.SIGKILL)}
    assert train(attack, name, "adamw", strikes=(strike,)).code == -signal.SIGKILL
    for step in steps_in(checkpoints(name)):
        checkpoint.verify(checkpoints(name) / f"step_{step}")
    process = resume(attack, name)
    assert process.code == 0, process.output
    assert_same(remains(name), whole(attack, "adamw")[0])


# --- damage ----------------------------------------------------------------------------------------


FILES = ["training.safetensors", "state.json", "model.safetensors", "SHA256SUMS"]


@pytest.mark.attack
@pytest.mark.parametrize("name", FILES)
def test_every_flipped_byte_and_every_cut_is_found(
    attack: Attack, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of small files and of the header of large ones every byte, else a sample."""
    run = "flipped"
    if not checkpoints(run).exists():
        killed_with_two_checkpoints(attack, run)
    *_, before, newest = steps_in(checkpoints(run))
    file = checkpoints(run) / f"step_{newest}" / name
    content = file.read_bytes()
    draw = random.Random(1)
    positions = {*range(0, min(len(content), 2500), budget(50, 1))} | {
        *draw.sample(range(len(content)), min(len(content), budget(10, 300)))
    }
    try:
        for position in sorted(positions):
            damaged = bytearray(content)
            damaged[position] ^= 1 << draw.randrange(8)
            for text in (bytes(damaged), content[:position]):
                file.write_bytes(text)
                with pytest.raises(checkpoint.CheckpointError, match=f"step_{newest} is damaged"):
                    checkpoint.verify(file.parent)
        capsys.readouterr()
        found = latest_checkpoint(checkpoints(run))
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
def test_the_checkpoint_before_a_damaged_one_is_found(
    attack: Attack, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All that a resume has to know of a damage; the next test resumes."""
    if not checkpoints("flipped").exists():
        killed_with_two_checkpoints(attack, "flipped")
    copy = Path(shutil.copytree(checkpoints("flipped"), tmp_path / "checkpoints"))
    *_, before, newest = steps_in(copy)
    DAMAGES[kind](copy / f"step_{newest}")
    found = latest_checkpoint(copy)
    assert found is not None and found.state["step"] == before
    told = capsys.readouterr().err
    assert f"step_{newest}" in told and told.count("trying the one before") == 1


@repeat("kind", DAMAGES)
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


@repeat("content", ["{", '{"step": 16, "loss": 0.1}', "", "[]", '{"step": "x"}'], few=2)
def test_the_mark_of_the_best_checkpoint_is_written_again(attack: Attack, content: str) -> None:
    """The run has its best behind it when it is killed, and comes to no better one."""
    name = f"marked_{len(content)}"
    strike = call("training.trainer:Trainer._log", 7)  # at step 21
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
    strike = call("training.checkpoints:delete_old_checkpoints", 7, after=True)
    assert train(attack, name, "muon", strikes=(strike,)).code == -signal.SIGKILL
    for step in steps_in(checkpoints(name)):
        flip(checkpoints(name) / f"step_{step}" / "state.json")
    (checkpoints(name) / "best.json").write_text("?")
    process = resume(attack, name)
    assert process.code == 0, process.output
    assert_same(remains(name), whole(attack, "muon")[0])


# --- a full disk -----------------------------------------------------------------------------------


@repeat("variant", ["muon_background", "muon"])
def test_a_disk_that_runs_full_ends_in_one_line_and_the_run_goes_on_with_more_space(
    attack: Attack, small_disk: SmallDisk, variant: str
) -> None:
    name = f"full_{variant}"
    disk = small_disk("512k")
    get_runs_dir().mkdir(parents=True, exist_ok=True)
    (get_runs_dir() / name).symlink_to(disk)
    process = train(attack, name, variant, "training.keep_checkpoints=1000")
    assert "cannot save" in error_of(process) and "space" in process.output
    assert "hint: " in process.output and status(name) == "failed"
    steps = steps_in(disk / "checkpoints")
    assert len(steps) >= 3 and steps[-1] < MAX_STEPS
    for step in steps:
        checkpoint.verify(disk / "checkpoints" / f"step_{step}")
    assert [path.name for path in (disk / "checkpoints").glob(".*")] == []
    small_disk("64m")
    process = resume(attack, name)
    assert process.code == 0, process.output
    assert_same(remains(name), whole(attack, variant)[0], final_only=True)


@repeat("variant", ["muon", "muon_background"])
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
    "a pass of an accumulation": call("training.trainer:Trainer._backward", 50, number=0),
    "the update": call("training.trainer:Trainer._update_weights", 14, number=0),
    "a save": call("models.checkpoint:_write_tensors", 6, number=0),
    "the end of a save": call("training.checkpoints:delete_old_checkpoints", 6, number=0),
    "an evaluation": call("training.evaluator:Evaluator.evaluate", 3, number=0),
    "sampling": call("training.evaluator:Evaluator.generate_samples", 3, number=0),
    "the evaluation that stops training": call(
        "training.evaluator:Evaluator.evaluate", 5, number=0
    ),
    "the last evaluation": call("training.evaluator:Evaluator.evaluate", 6, number=0),
    "the last save": call("models.checkpoint:_write_tensors", 10, number=0),
}


SIGNALS = [signal.SIGINT, signal.SIGTERM]
IN_SHORT = [
    ("a pass of an accumulation", signal.SIGINT),
    ("a save", signal.SIGTERM),
    ("the last evaluation", signal.SIGINT),
]
IN_ALL = [pair for pair in itertools.product(PHASES, SIGNALS) if pair not in IN_SHORT]


@repeat(("phase", "number"), [*IN_SHORT, *IN_ALL], few=len(IN_SHORT))
def test_a_signal_in_any_phase_is_obeyed_and_the_run_goes_on_exactly(
    attack: Attack, phase: str, number: signal.Signals
) -> None:
    """One optimizer stops early, so that six evaluations and ten saves are all."""
    turn = (list(PHASES).index(phase) + (number == signal.SIGINT)) % 2
    for variant in budget(("adamw", "adamw_background")[turn:][:1], ("adamw", "adamw_background")):
        name = f"signal_{list(PHASES).index(phase)}_{number.name}_{variant}"
        process = train(attack, name, variant, strikes=(PHASES[phase] | {"signal": number},))
        assert process.code == 128 + number, (process.code, process.output)
        assert "Traceback" not in process.output
        last_line = process.output.strip().splitlines()[-1]
        assert "interrupted at step" in last_line and f"--name {name} --resume" in last_line
        assert status(name) == "interrupted"
        newest = steps_in(checkpoints(name))[-1]
        assert f"interrupted at step {newest}," in last_line
        process = resume(attack, name)
        assert process.code == 0, process.output
        assert_same(remains(name), whole(attack, variant)[0], final_only=True)


@repeat(
    ("number", "variant"),
    [
        (signal.SIGTERM, "adamw"),
        (signal.SIGINT, "adamw_background"),
        (signal.SIGINT, "adamw"),
        (signal.SIGTERM, "adamw_background"),
    ],
    few=2,
)
def test_a_second_signal_ends_the_run_at_once(
    attack: Attack, variant: str, number: signal.Signals
) -> None:
    """In the same optimizer step, which is lost then, and in the save that the first one led to."""
    for place in ("training.trainer:Trainer._backward", "models.checkpoint:fsync_file"):
        name = f"second_{number.name}_{variant}_{place[:6]}"
        first = call("training.trainer:Trainer._backward", 50, number=number)
        second = call(place, 51 if "trainer" in place else 31, number=number)
        process = train(attack, name, variant, strikes=(first, second))
        assert process.code == (130 if number == signal.SIGINT else -signal.SIGTERM)
        assert "Traceback" not in process.output
        assert status(name) == ("interrupted" if number == signal.SIGINT else "died")
        process = resume(attack, name)
        assert process.code == 0, process.output
        assert_same(remains(name), whole(attack, variant)[0], final_only=True)


IN_A_RESUME_TOO = [
    "training.state:unpack_optimizer",
    "training.trainer:Trainer.resume",
    "training.callbacks.samples:Samples.on_train_start",
]


@repeat(("place", "number"), itertools.product(IN_A_RESUME_TOO, SIGNALS))
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
