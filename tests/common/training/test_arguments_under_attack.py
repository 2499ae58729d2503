"""Resuming with another configuration or other data, wrong arguments, and two processes at once."""

from __future__ import annotations

import json
import signal
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import pytest
import torch

from common.experiments.names import exists
from common.models import checkpoint
from common.training.optimizer_state import with_prefix
from common.utils import query_experiments
from common.utils.paths import get_runs_dir
from tests.budget import repeat
from tests.common.training.attack_lab import (
    MAX_STEPS,
    Attack,
    assert_same,
    call,
    checkpoints,
    error_of,
    killed_with_two_checkpoints,
    remains,
    resume,
    status,
    train,
    whole,
)

pytestmark = pytest.mark.slow


# --- another configuration, other data -------------------------------------------------------------


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


@repeat("override", OVERRIDES, few=2, ids=lambda override: override.change)
def test_what_is_overridden_takes_effect_and_is_recorded(
    attack: Attack, override: Override
) -> None:
    name = f"overridden_{OVERRIDES.index(override)}"
    killed_with_two_checkpoints(attack, name)
    error = error_of(attack.run("--name", name, "--resume", override.change))
    assert "a different configuration" in error and override.told in error
    process = attack.run("--name", name, "--resume-anyway", override.change)
    assert process.code == 0, process.output
    assert "resuming with a different configuration" in process.output
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
    strike = call("training.trainer:Trainer._log", 3)
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
    strike = call("training.trainer:Trainer._log", 7)
    factors = "optimizer.lr_factors={{'final_norm.{}': 2.0}}"
    process = train(attack, name, "muon", factors.format("weight"), strikes=(strike,))
    assert process.code == -signal.SIGKILL, process.output
    process = train(attack, name, "muon", factors.format("bias"), "--resume-anyway")
    assert "grouped differently" in error_of(process)


def test_an_average_can_be_given_up_and_begun_on_the_way(attack: Attack) -> None:
    """Given up, training goes on from the trained weights, not from their average."""
    strike = call("training.checkpoints:delete_old_checkpoints", 7, after=True)
    trained: dict[str, dict[str, str]] = {}
    for name, first, then in (("ended", "0.9", "null"), ("begun", "null", "0.9")):
        process = train(attack, name, "muon", f"training.ema_decay={first}", strikes=(strike,))
        assert process.code == -signal.SIGKILL
        process = attack.run("--name", name, "--resume-anyway", f"training.ema_decay={then}")
        assert process.code == 0, process.output
        found = checkpoint.load_checkpoint(checkpoints(name) / "step_40")
        averaged = with_prefix(found.tensors, "trained.")
        assert bool(averaged) == (name == "begun")
        weights = averaged or checkpoint.load_file(found.path / "model.safetensors")
        trained[name] = {key: sha256(value.numpy()).hexdigest() for key, value in weights.items()}
    whole(attack, "muon")
    expected = checkpoint.load_checkpoint(checkpoints("whole_muon") / "step_40").tensors
    for key, value in with_prefix(expected, "trained.").items():
        digest = sha256(value.numpy()).hexdigest()
        assert trained["ended"][key] == trained["begun"][key] == digest


def test_other_data_is_refused_but_a_touched_file_is_not_and_it_can_be_taken_anyway(
    attack: Attack,
) -> None:
    name = "other_data"
    killed_with_two_checkpoints(attack, name)
    text = attack.folder / "text.txt"
    content = text.read_text()
    other = content.replace("cat", "tac")
    try:
        text.write_text(other)
        error = error_of(resume(attack, name))
        assert "different data" in error and "->" in error
        assert status(name) in ("died", "failed")
        text.write_text(content)
        process = attack.run(
            "--name", name, "--resume", strikes=(call("training.trainer:Trainer._log", 2),)
        )
        assert process.code == -signal.SIGKILL, process.output
        text.write_text(other)
        process = attack.run("--name", name, "--resume-anyway")
        assert process.code == 0 and "resuming on different data" in process.output
    finally:
        text.write_text(content)


def test_another_number_of_threads_is_told(attack: Attack) -> None:
    name = "threads"
    killed_with_two_checkpoints(attack, name)
    process = attack.run("--name", name, "--resume", "training.num_threads=2")
    assert process.code == 0 and "threads was 1 and is 2" in process.output


# --- wrong arguments, and more than one process ----------------------------------------------------

WRONG = {
    "optimizer.name=foo": "expected 'adamw' or 'muon', got 'foo'",
    "optimizer.betas=[0.9,1.0]": "optimizer.betas.1: expected less than 1",
    "optimizer.lr_factors={'nothing.*':2.0}": "no parameter name matches 'nothing.*'",
    "optimizer.lr_factors={'token_embedding.*':-1.0}": "greater than or equal to 0",
    "optimizer.lr_factors={'token_embedding.*':true}": "expected a number, got true",
    "schedule.decay_fraction=0": "schedule.decay_fraction: expected greater than 0, got 0",
    "schedule.name=triangle": "'cosine', 'linear', 'constant' or 'wsd'",
    "training.precision=fp8": "'fp32', 'tf32', 'bf32', 'bf16' or 'fp16', got 'fp8'",
    "training.precision=tf32": "cpu does not support tf32",
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
    assert not exists(name) and not (get_runs_dir() / name).exists()


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
