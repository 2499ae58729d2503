"""Exact resume, proven by killing real processes of projects/baseline/train.py.

The fork server makes a start cheap; each process runs the script as `python projects/baseline/train.py`
does, and can be killed.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import pytest

from apps.reproduction.reproduce import changed_resumes
from common.experiments import store
from common.experiments.catalogue import Catalogue
from common.experiments.log import read_log
from common.experiments.names import exists
from common.models.registry import MIXERS
from common.training.checkpoints import steps_in
from common.training.config import FREE_ON_RESUME
from common.utils import query_experiments
from common.utils.files import sha256_of
from common.utils.paths import REPOSITORY_ROOT, get_experiments_dir, get_runs_dir
from common.utils.system_metrics import SYSTEM_METRICS
from tests import fork_server
from tests.budget import budget, repeat
from tests.fork_server import ForkServer

pytestmark = pytest.mark.slow
MAX_STEPS = 120

CONFIG = f"""
seed: 3
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
  warmup_steps: 5
training:
  max_steps: {MAX_STEPS}
  eval_every_steps: 30
  eval_batches: 2
  checkpoint_every_steps: 20
  log_every_steps: 7
  device: cpu
  precision: fp32
  compile: false
samples:
  prompts: ["", "the "]
  max_new_tokens: 12
"""


@dataclass
class Process:
    """One run of a script."""

    process: fork_server.Process
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def code(self) -> int | None:
        return self.process.poll()

    def wait(self) -> int:
        return self.process.wait()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    @property
    def output(self) -> str:
        return self.log.read_text()


@dataclass
class Lab:
    """A text, a configuration, an assets folder, and the server that starts scripts."""

    folder: Path
    server: ForkServer
    started: int = 0

    def start(
        self,
        *arguments: str,
        script: str = "train.py",
        cwd: Path | None = None,
        signal_at: tuple[int, str, int] | None = None,
        strikes: tuple[dict[str, Any], ...] = (),
    ) -> Process:
        """`signal_at`: (moment, text in the path, signal), of the changes that write, see fork_server.py."""
        if signal_at:
            count, text, number = signal_at
            strikes += ({"count": count, "signal": number, "change": text, "reads": False},)
        path = self.folder / f"output_{self.started}.txt"
        self.started += 1
        script = f"{REPOSITORY_ROOT}/projects/baseline/{script}"
        with path.open("w") as log, Path(os.devnull).open() as stdin:
            process = self.server.start(
                script,
                *arguments,
                cwd=cwd or self.folder,
                strikes=strikes,
                stdin=stdin,
                stdout=log,
                stderr=log,
            )
        return Process(process, path)

    def run(self, *arguments: str, **options: Any) -> Process:
        process = self.start(*arguments, **options)
        process.wait()
        return process

    def train(self, name: str, *more: str, **options: Any) -> Process:
        return self.run("--config", "config.yaml", "--name", name, *more, **options)

    def resume(self, name: str, *more: str, **options: Any) -> Process:
        return self.run("--name", name, "--resume", *more, **options)

    def stop_at(self, name: str, step: int, number: int, *arguments: str) -> Process:
        """Start (or with other arguments, resume) `name` and send the signal once `step` is logged."""
        arguments = arguments or ("--config", "config.yaml", "--name", name)
        process = self.start(*arguments)
        while last_step(name) < step:
            assert process.code is None, process.output
            time.sleep(0.002)
        process.signal(number)
        process.wait()
        return process


AnyLab = TypeVar("AnyLab", bound=Lab)


def last_step(name: str) -> int:
    path = store.log_path(name)
    rows = read_log(path).rows if path.exists() else []
    return max((row["step"] for row in rows), default=0)


@pytest.fixture(scope="module")
def shared_lab(tmp_path_factory: pytest.TempPathFactory, fork_server: ForkServer) -> Lab:
    return open_lab(Lab, tmp_path_factory.mktemp("lab"), fork_server, CONFIG, num_words=3000)


def open_lab(
    kind: type[AnyLab], folder: Path, server: ForkServer, config: str, num_words: int
) -> AnyLab:
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "ran", "dog", "sun"]
    draw = random.Random(0)
    (folder / "text.txt").write_text(" ".join(draw.choice(words) for _ in range(num_words)))
    (folder / "config.yaml").write_text(config.replace("TEXT", str(folder / "text.txt")))
    return kind(folder, server)


@pytest.fixture
def lab(shared_lab: Lab, assets_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """After `assets_dir`, so that this process looks where the others write."""
    monkeypatch.setenv("RESEARCH_ASSETS_DIR", str(shared_lab.folder / "assets"))
    return shared_lab


def checkpoints(name: str) -> Path:
    return get_runs_dir() / name / "checkpoints"


def status(name: str) -> str:
    return str(query_experiments(f"SELECT status FROM runs WHERE name = '{name}'")["status"][0])


def rows(name: str) -> pd.DataFrame:
    """Everything that is logged and is not a matter of the clock or of the machine."""
    frame = query_experiments(
        f"SELECT * FROM experiments WHERE experiment_name = '{name}' ORDER BY step, split"
    )
    measured = ["experiment_name", "time", "tokens_per_second", "mfu", *SYSTEM_METRICS]
    return frame.drop(columns=measured, errors="ignore")


@pytest.fixture
def whole(lab: Lab) -> str:
    """The run that was never stopped."""
    if not (get_runs_dir() / "whole").exists():
        process = lab.train("whole")
        assert process.code == 0, process.output
    return "whole"


def assert_same_run(name: str, reference: str) -> None:
    """Weights to the bit, every logged number, every sample; no step missing and none twice."""
    for file in ("model.safetensors", "training.safetensors"):
        final = f"step_{MAX_STEPS}/{file}"
        assert sha256_of(checkpoints(name) / final) == sha256_of(checkpoints(reference) / final)
    found, expected = rows(name), rows(reference)
    pd.testing.assert_frame_equal(found, expected, check_exact=True)
    assert not found.duplicated(["step", "split"]).any()
    assert found[found.split == "train"].step.tolist() == list(range(7, MAX_STEPS + 1, 7))
    assert found[found.split == "val_quick"].step.tolist() == list(range(30, MAX_STEPS + 1, 30))
    assert found[found.split == "val"].step.tolist() == [MAX_STEPS]
    samples = [(get_runs_dir() / run / "samples.jsonl").read_bytes() for run in (name, reference)]
    assert samples[0] == samples[1] and samples[0].count(b"\n") == 8
    assert status(name) == "finished"
    best = [json.loads((checkpoints(run) / "best.json").read_text()) for run in (name, reference)]
    assert best[0] == best[1]


@pytest.mark.attack
@pytest.mark.parametrize("step", budget([49], [7, 49, 91]))
def test_a_killed_run_resumes_to_the_same_weights_rows_and_samples(
    lab: Lab, whole: str, step: int
) -> None:
    name = f"killed_{step}"
    assert lab.stop_at(name, step, signal.SIGKILL).code == -signal.SIGKILL
    assert status(name) == "died"
    process = lab.resume(name)
    assert process.code == 0, process.output
    assert_same_run(name, whole)


@pytest.mark.attack
@pytest.mark.parametrize("moment", budget([30], [5, 12, 23, 30, 45]))
def test_a_kill_at_any_change_of_a_file_resumes_to_the_same_run(
    lab: Lab, whole: str, moment: int
) -> None:
    """While it is set up, in the middle of a save, between a checkpoint and its evaluation, while
    samples are written."""
    name = f"moment_{moment}"
    process = lab.train(name, signal_at=(moment, f"runs/{name}", signal.SIGKILL))
    assert process.code == -signal.SIGKILL, process.output
    process = lab.resume(name, "--config", "config.yaml")
    assert process.code == 0, process.output
    assert_same_run(name, whole)


FAMILIES = [
    *(f"mixer={name}" for name in MIXERS if name != "attention"),
    "layers=mamba2 gated_delta_net attention",
    "feedforwards=mlp moe",
    "feedforward=moe, options.moe.balance=bias, options.moe.num_shared=1",
]


@pytest.mark.attack
@pytest.mark.parametrize(
    "family", budget(["mixer=gated_delta_net", FAMILIES[-1]], FAMILIES), ids=str
)
def test_every_family_resumes_to_the_same_run_after_a_kill(lab: Lab, family: str) -> None:
    """With documents apart, averaged weights, accumulation, and Muon for the matrices."""
    options = [f"model.{option}" for option in family.split(", ")]
    options += ["model.num_layers=3", "model.positions=none", "optimizer.name=muon"]
    options += ["training.ema_decay=0.9", "training.gradient_accumulation_steps=2"]
    name = re.sub(r"\W+", "_", family)
    whole = lab.train(name, *options)
    assert whole.code == 0, whole.output
    killed = lab.train(f"{name}_killed", *options, signal_at=(1, "step_60", signal.SIGKILL))
    assert killed.code == -signal.SIGKILL, killed.output
    resumed = lab.resume(f"{name}_killed")
    assert resumed.code == 0, resumed.output
    assert_same_run(f"{name}_killed", name)


def test_epochs_go_on_exactly_after_a_kill(lab: Lab) -> None:
    sampling = "data.sampling=shuffled"
    assert lab.train("epochs", sampling).code == 0
    lab.train("killed_epochs", sampling, signal_at=(1, "step_60", signal.SIGKILL))
    assert lab.resume("killed_epochs").code == 0
    assert_same_run("killed_epochs", "epochs")
    judged = lab.run("killed_epochs", script="evaluate.py")
    assert judged.code == 0 and "perplexity" in judged.output, judged.output


@repeat("moment", [2, 1, 3])
def test_a_run_killed_while_it_is_set_up_can_be_resumed_and_spoils_no_other(
    shared_lab: Lab, moment: int
) -> None:
    """In an assets folder of its own: a damaged catalogue would fail every other test."""
    steps = "training.max_steps=8"
    assert shared_lab.train("other", steps).code == 0
    process = shared_lab.train("new", steps, signal_at=(moment, "runs/new", signal.SIGKILL))
    assert process.code == -signal.SIGKILL
    assert status("other") == "finished"
    process = shared_lab.resume("new", steps, "--config", "config.yaml")
    assert process.code == 0, process.output
    assert [status("other"), status("new")] == ["finished", "finished"]


def test_a_run_killed_before_its_first_checkpoint_starts_again(lab: Lab, whole: str) -> None:
    process = lab.train("early", signal_at=(1, "step_20", signal.SIGKILL))
    assert process.code == -signal.SIGKILL
    assert last_step("early") == 14 and steps_in(checkpoints("early")) == []
    process = lab.resume("early")
    assert process.code == 0 and "from the beginning" in process.output
    assert_same_run("early", whole)


def test_a_run_killed_after_its_last_step_is_finished_by_a_resume(lab: Lab, whole: str) -> None:
    # The file of samples is opened for the last time after the last checkpoint.
    process = lab.train("last", signal_at=(4, "last/samples.jsonl", signal.SIGKILL))
    assert process.code == -signal.SIGKILL
    assert steps_in(checkpoints("last"))[-1] == MAX_STEPS
    assert lab.resume("last").code == 0
    assert_same_run("last", whole)


def test_a_kill_while_saving_leaves_no_rubbish_once_the_run_is_finished(lab: Lab) -> None:
    process = lab.train("rubbish", signal_at=(2, "step_40", signal.SIGKILL))
    assert process.code == -signal.SIGKILL
    assert lab.resume("rubbish").code == 0
    names = [path.name for path in checkpoints("rubbish").iterdir()]
    assert [name for name in names if name.startswith(".")] == []


def test_a_signal_in_an_evaluation_is_obeyed_after_the_next_step(lab: Lab, whole: str) -> None:
    process = lab.train("judged", signal_at=(1, "judged/samples.jsonl", signal.SIGTERM))
    assert process.code == 143 and status("judged") == "interrupted"
    assert steps_in(checkpoints("judged"))[-1] == 31
    assert lab.resume("judged").code == 0
    assert_same_run("judged", whole)


# What is refused


@pytest.fixture
def stopped(lab: Lab) -> str:
    if not (get_runs_dir() / "stopped").exists():
        lab.stop_at("stopped", 42, signal.SIGTERM)
    return "stopped"


def assert_refused(process: Process, *reasons: str) -> None:
    """One line with the error, exit code 2, no traceback."""
    assert process.code == 2, process.output
    assert "Traceback" not in process.output
    errors = [line for line in process.output.splitlines() if line.startswith("error [")]
    assert len(errors) == 1
    for reason in reasons:
        assert reason in process.output


def test_another_configuration_is_refused_and_the_difference_named(lab: Lab, stopped: str) -> None:
    arguments = ("--config", "config.yaml", "optimizer.lr=0.5", "model.dropout=0.0")
    process = lab.resume(stopped, *arguments)
    assert_refused(process, "optimizer.lr: 0.001 -> 0.5", "model.dropout: 0.2 -> 0.0")
    assert "seed" not in process.output
    assert status(stopped) == "interrupted"


def test_what_decides_no_weight_and_no_row_is_no_other_configuration(lab: Lab, whole: str) -> None:
    changes = {
        "training.checkpoint_every_steps": "11",
        "training.keep_checkpoints": "1",
        "training.num_threads": "1",
        "training.profile_steps": "[50,51]",
        "training.save_in_background": "true",
        "training.tensorboard": "true",
        "training.wandb": "off",
    }
    assert set(changes) == FREE_ON_RESUME
    arguments = [f"{key}={value}" for key, value in changes.items()]
    lab.stop_at("freely", 42, signal.SIGKILL)
    process = lab.resume("freely", *arguments)
    assert process.code == 0, process.output
    assert_same_run("freely", whole)


def test_every_start_is_recorded_and_what_it_changed(lab: Lab) -> None:
    lab.stop_at("changed", 42, signal.SIGKILL)
    assert lab.stop_at("changed", 63, signal.SIGKILL, "--name", "changed", "--resume").code < 0
    process = lab.run("--name", "changed", "--resume-anyway", "optimizer.lr=0.01")
    assert process.code == 0, process.output
    manifest = Catalogue().manifest("changed")
    first, honest, changed = manifest["starts"]
    assert [first["step"], honest["step"], changed["step"]] == [0, 40, 60]
    assert first["changes"] == honest["changes"] == {}
    assert changed["changes"] == {"optimizer.lr": [0.001, 0.01]}
    assert "optimizer.lr=0.01" in changed["argv"] and "optimizer.lr=0.01" not in first["argv"]
    for start in manifest["starts"]:
        assert start["precision"] == "fp32" and start["threads"] == 1 and start["host"]
        assert start["git_commit"] == manifest["git_commit"] and start["device"] == "cpu"
    assert manifest["threads"] == 1 and manifest["compiled"] is False and manifest["cpu"]
    assert manifest["config"]["optimizer"]["lr"] == 0.01
    assert set(manifest["data_fingerprint"]) == {"train", "val", "val_quick"}
    assert manifest["tokenizer"]
    assert changed_resumes(manifest) == ["resumed at step 60 with optimizer.lr: 0.001 -> 0.01"]


def test_an_extended_run_is_an_experiment_of_its_own_that_goes_on(lab: Lab, whole: str) -> None:
    # At a constant rate the steps of a longer run are those of a short one that was extended.
    constant = ("schedule.name=constant", "schedule.warmup_steps=0")
    assert lab.train("short", *constant, "training.max_steps=60").code == 0
    assert lab.train("long", *constant).code == 0
    more = ("--name", "extended", "--extend", "short", f"training.max_steps={MAX_STEPS}")
    process = lab.start(*more)
    while last_step("extended") < 84:
        assert process.code is None, process.output
        time.sleep(0.002)
    process.signal(signal.SIGKILL)
    process.wait()
    process = lab.resume("extended")
    assert process.code == 0, process.output
    for file in ("model.safetensors", "training.safetensors"):
        final = f"step_{MAX_STEPS}/{file}"
        assert sha256_of(checkpoints("extended") / final) == sha256_of(checkpoints("long") / final)
    expected = rows("long")
    begun = (expected.step == 60) & (
        expected.split == "val_quick"
    )  # what it begins with is evaluated
    expected = expected[(expected.step > 60) | begun].reset_index(drop=True)
    pd.testing.assert_frame_equal(rows("extended"), expected, check_exact=True)
    manifest = Catalogue().manifest("extended")
    assert manifest["extends"] == "short"
    assert [start["step"] for start in manifest["starts"]] == [60, 80]
    assert manifest["starts"][0]["changes"] == {"training.max_steps": [60, MAX_STEPS]}
    assert_refused(lab.run("--extend", "short"), "already has 60 steps", "training.max_steps=120")
    assert_refused(lab.run("--extend", "nothing", "training.max_steps=99"), "no experiment")
    assert_refused(lab.run("--extend", "short", "--resume"), "cannot be combined with")


@repeat("content", [None, "optimizer: {lr: 0.5}", "", "{"], few=2)
def test_the_log_decides_what_is_resumed_and_the_file_is_a_copy(
    lab: Lab, whole: str, content: str | None
) -> None:
    name = f"edited_{content}".translate({ord(letter): "_" for letter in ": {.}"})
    lab.stop_at(name, 42, signal.SIGKILL)
    file = get_runs_dir() / name / "config.yaml"
    before = file.read_text()
    if content is None:  # as a kill after the first record of the log leaves it
        file.unlink()
        evaluated = lab.run("--name", name, script="evaluate.py")
        assert evaluated.code == 0, evaluated.output
    else:
        file.write_text(content)
    process = lab.resume(name)
    assert process.code == 0, process.output
    assert ("was edited, but is only a copy" in process.output) == (content is not None)
    assert_same_run(name, whole)
    assert file.read_text() == before


def test_samples_that_a_full_disk_cut_keep_no_run_from_resuming(lab: Lab, whole: str) -> None:
    lab.stop_at("cut", 63, signal.SIGKILL)
    path = get_runs_dir() / "cut" / "samples.jsonl"
    path.write_bytes(path.read_bytes() + '{"step": 60, "text": "é'.encode()[:-1])
    process = lab.resume("cut")
    assert process.code == 0, process.output
    assert_same_run("cut", whole)


def test_a_finished_run_is_refused(lab: Lab, whole: str) -> None:
    assert_refused(lab.resume(whole), "'whole' is finished")


def test_a_running_one_is_refused(lab: Lab) -> None:
    process = lab.start("--config", "config.yaml", "--name", "alive")
    while last_step("alive") < 21:
        time.sleep(0.001)
    process.signal(signal.SIGSTOP)
    try:
        assert status("alive") == "running"
        assert_refused(lab.resume("alive"), "'alive' is running")
    finally:
        process.signal(signal.SIGCONT)
    assert process.wait() == 0, process.output


def test_a_name_that_is_taken_is_refused(lab: Lab, whole: str, stopped: str) -> None:
    before = store.log_path(stopped).read_bytes()
    assert_refused(lab.train(whole), "'whole' already exists")
    assert_refused(lab.train(stopped), "'stopped' already exists")
    assert store.log_path(stopped).read_bytes() == before


def test_a_name_that_does_not_exist_is_refused_with_the_nearest(lab: Lab, stopped: str) -> None:
    assert_refused(lab.resume("stoped"), "no experiment 'stoped'", "stopped")
    assert_refused(lab.resume("stoped", "--config", "config.yaml"), "no experiment 'stoped'")


def test_resume_without_a_name_takes_the_newest_unfinished_run_of_the_configuration(
    lab: Lab, whole: str
) -> None:
    config = ("--config", "config.yaml", "data.batch_size=3", "training.max_steps=30")
    assert_refused(lab.run(*config, "--resume"), "no unfinished run")
    for name in ("newest_2", "newest_1"):
        lab.train(name, *config[2:], signal_at=(1, "step_20", signal.SIGKILL))
    lab.train("newest_3", *config[2:], "seed=4", signal_at=(1, "step_20", signal.SIGKILL))
    process = lab.run(*config, "--resume")
    assert process.code == 0, process.output
    assert [status(f"newest_{i}") for i in (1, 2, 3)] == ["finished", "died", "died"]


def test_names_are_numbered_when_none_is_given(lab: Lab) -> None:
    steps = "training.max_steps=8"
    for _ in range(2):
        assert lab.run("--config", "config.yaml", steps).code == 0
    names = [path.stem for path in get_experiments_dir().glob("config_*.parquet")]
    assert len(names) == 2 and all(name.startswith("config_0") for name in names)


@pytest.mark.parametrize(
    "override",
    ["training.device=cuda:99", "samples.prompts=[the, THE]"],
)
def test_what_cannot_work_is_found_before_the_name_is_taken(lab: Lab, override: str) -> None:
    name = override.split("=")[0]
    assert_refused(lab.train(name, override))
    assert not exists(name)


def test_a_relative_path_to_the_text_means_the_same_from_any_folder(
    lab: Lab, tmp_path: Path
) -> None:
    name = "relative"
    lab.train(name, "data.path=text.txt", signal_at=(1, "step_40", signal.SIGKILL))
    process = lab.resume(name, cwd=tmp_path)
    assert process.code == 0, process.output
    process = lab.run("--name", name, script="evaluate.py", cwd=tmp_path)
    assert process.code == 0, process.output


def test_evaluating_on_a_text_that_has_changed_is_refused(lab: Lab, whole: str) -> None:
    """With as many characters the model would fit, and every number would be wrong."""
    text = lab.folder / "text.txt"
    content = text.read_text()
    text.write_text(content.replace("c", "z"))
    try:
        process = lab.run("--name", whole, script="evaluate.py")
    finally:
        text.write_text(content)
    assert_refused(process)
