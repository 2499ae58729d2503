"""`tools/reproduce.py` on real trainings, in a real repository of its own."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import psutil
import pyarrow as pa
import pytest
from safetensors.torch import load_file, save_file

from apps.reproduction.reproduce import compare_environments, reproduce
from common.errors import ExperimentError
from common.experiments.catalogue import Catalogue
from common.experiments.log import read_log
from common.experiments.parquet import read_parquet, write_table
from common.experiments.store import log_path, parquet_path
from common.utils import save_experiment, start_experiment
from common.utils.files import write_json_atomic
from common.utils.manifest import ID
from common.utils.paths import REPOSITORY_ROOT, get_runs_dir
from tests.budget import repeat
from tests.fork_server import ForkServer

slow = pytest.mark.slow
MAX_STEPS = 60
CONFIG = f"""
seed: 3
data: {{tokenizer: char, batch_size: 4, path: TEXT}}
model: {{num_layers: 1, num_heads: 2, hidden_size: 16, context_length: 16, dropout: 0.2}}
schedule: {{warmup_steps: 5}}
training:
  max_steps: {MAX_STEPS}
  eval_every_steps: 20
  keep_checkpoints: 9
  log_every_steps: 10
  device: cpu
samples: {{max_new_tokens: 5}}
"""
IDENTITY = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false"]


@dataclass
class Lab:
    """A repository, a text, an assets folder, a folder for temporary files."""

    folder: Path
    server: ForkServer

    @property
    def repository(self) -> Path:
        return self.folder / "repository"

    @property
    def environment(self) -> dict[str, str]:
        temporary = self.folder / "temporary"
        temporary.mkdir(exist_ok=True)
        return os.environ | {
            "RESEARCH_ASSETS_DIR": str(self.folder / "assets"),
            "PYTHONPATH": str(self.repository),
            "TMPDIR": str(temporary),
            "OMP_NUM_THREADS": "1",
        }

    def run(self, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.server.run(self.repository / script, *arguments, env=self.environment)

    def reproduce(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        result = self.run("tools/reproduce.py", *arguments)
        assert "Traceback" not in result.stderr, result.stderr
        self.assert_tidy()
        return result

    def assert_tidy(self) -> None:
        assert list((self.folder / "temporary").glob("worktree-*")) == []
        assert len(self.git("worktree", "list").splitlines()) == 1
        assert self.git("status", "--porcelain") == ""

    def git(self, *arguments: str) -> str:
        command = ["git", *IDENTITY, *arguments]
        result = subprocess.run(command, cwd=self.repository, capture_output=True, check=True)
        return result.stdout.decode()

    @contextmanager
    def changed_text(self, change: Callable[[Path], object]) -> Iterator[None]:
        path = self.folder / "text.txt"
        status, content = path.stat(), path.read_bytes()
        change(path)
        try:
            yield
        finally:
            path.write_bytes(content)
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.fixture(scope="module")
def shared_lab(tmp_path_factory: pytest.TempPathFactory, fork_server: ForkServer) -> Lab:
    """With the experiment `dirty`, trained by code of which a part was never committed."""
    lab = Lab(tmp_path_factory.mktemp("lab"), fork_server)
    unwanted = shutil.ignore_patterns("__pycache__")
    for part in ("common", "tools", "projects/baseline"):
        copy = lab.repository / part
        shutil.copytree(REPOSITORY_ROOT / part, copy, ignore=unwanted, symlinks=True)
    (lab.repository / ".gitignore").write_text("__pycache__/\nprojects/*/data\n")
    for arguments in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "all"]):
        lab.git(*arguments)
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "ran", "dog", "sun"]
    draw = random.Random(0)
    (lab.folder / "text.txt").write_text(" ".join(draw.choice(words) for _ in range(3000)))
    config = lab.folder / "config.yaml"
    config.write_text(CONFIG.replace("TEXT", str(lab.folder / "text.txt")))

    model = lab.repository / "common" / "models" / "decoder.py"
    committed = model.read_text()
    model.write_text(committed.replace("std=0.02", "std=0.03"))
    assert model.read_text() != committed
    result = lab.run("projects/baseline/train.py", "--config", str(config), "--name", "dirty")
    assert result.returncode == 0, result.stderr
    model.write_text(committed)
    return lab


@pytest.fixture
def lab(shared_lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """This process sees the assets of the lab."""
    monkeypatch.setenv("RESEARCH_ASSETS_DIR", str(shared_lab.folder / "assets"))
    return shared_lab


def copy_of(experiment: str, name: str, **facts: object) -> Path:
    """Another experiment of the same numbers and files, with other facts in its manifest."""
    manifest, table = read_parquet(parquet_path(experiment))
    names = pa.array([name] * len(table))
    table = table.set_column(0, "experiment_name", names)
    identity = {"name": name, ID: os.urandom(16).hex()}
    write_table(manifest | identity | facts, table)
    folder = get_runs_dir() / name
    shutil.copytree(get_runs_dir() / experiment, folder)
    write_json_atomic(folder / "manifest.json", manifest | identity)
    return folder


@slow
def test_a_run_of_a_dirty_tree_is_reproduced_bit_for_bit(lab: Lab) -> None:
    """The checkout is clean by now: without the recorded changes every number would be another."""
    result = lab.reproduce("dirty")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "metrics      identical" in result.stdout and "not compared: " in result.stdout
    assert f"tensors of step {MAX_STEPS}" in result.stdout and "weights      iden" in result.stdout
    assert "environment  the same" in result.stdout
    assert "with its uncommitted changes" in result.stderr
    rerun = Catalogue().manifest("dirty_reproduced")
    assert rerun["status"] == "finished" and rerun["archived"] and rerun["tags"] == ["reproduction"]
    assert rerun["note"] == "reproduction of dirty: identical"
    assert [run.name for run in Catalogue().overview()] == ["dirty"]


@slow
def test_other_code_is_found_different_from_the_first_row_on(lab: Lab) -> None:
    copy_of("dirty", "clean", git_diff="", git_dirty=False)
    result = lab.reproduce("clean", "--name", "clean_again", "--steps", "20")
    assert result.returncode == 1, result.stdout + result.stderr
    assert "different from step 10 (train) on: loss" in result.stdout
    assert "weights      different" in result.stdout
    assert Catalogue().manifest("clean_again")["note"].endswith("different")


@slow
def test_what_was_changed_by_hand_is_named(lab: Lab) -> None:
    folder = copy_of("dirty", "edited")
    manifest, table = read_parquet(parquet_path("edited"))
    index = table["step"].to_pylist().index(40)
    losses = table["loss"].to_pylist()
    before, losses[index] = losses[index], losses[index] * 2
    column = table.schema.get_field_index("loss")
    parquet_path("edited").unlink()
    write_table(manifest, table.set_column(column, "loss", pa.array(losses, pa.float64())))
    path = folder / "checkpoints" / f"step_{MAX_STEPS}" / "model.safetensors"
    weights = load_file(path)
    weights["final_norm.bias"][3] += 0.5
    save_file(weights, path)

    result = lab.reproduce("edited")
    assert result.returncode == 1, result.stdout + result.stderr
    assert f"from step 40 (train) on: loss {losses[index]!r} -> {before!r}" in result.stdout
    assert "relative difference 0.5" in result.stdout and "1 of " in result.stdout
    assert "final_norm.bias: 1 of 16 numbers, the largest difference is 0.5" in result.stdout
    assert "is damaged" in result.stdout  # the checksum tells that it was not the training

    result = lab.reproduce("edited", "--steps", "30")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "tensors of step 20" in result.stdout
    rerun = Catalogue().manifest("edited_reproduced_002")
    assert rerun["config"]["training"]["max_steps"] == MAX_STEPS
    assert rerun["status"] in (
        "interrupted",
        "finished",
    )  # so short a one may end before it is told


@slow
def test_data_that_have_changed_are_named(lab: Lab) -> None:
    with lab.changed_text(lambda path: path.write_text(path.read_text().replace("cat", "tac", 1))):
        result = lab.reproduce("dirty", "--name", "other_text")
    assert result.returncode == 2 and "error [data]" in result.stderr
    assert "text.txt has changed since 'dirty' was trained" in result.stderr
    with lab.changed_text(Path.unlink):
        result = lab.reproduce("dirty", "--name", "no_text")
    assert result.returncode == 2 and "the rerun failed with exit code 2" in result.stderr
    assert "no such file or folder" in result.stderr and "text.txt" in result.stderr


@slow
@repeat("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_no_process_and_no_folder(lab: Lab, number: signal.Signals) -> None:
    name = f"stopped_{number.name}"
    tool = str(lab.repository / "tools/reproduce.py")
    command = [sys.executable, tool, "dirty", "--name", name]
    with subprocess.Popen(
        command, env=lab.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            while not (log_path(name).exists() and read_log(log_path(name)).manifest):
                assert process.poll() is None
                time.sleep(0.01)
            pid = read_log(log_path(name)).manifest["pid"]
            process.send_signal(number)
            _, error = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 128 + number, error
    assert "Traceback" not in error
    assert not psutil.pid_exists(pid)
    assert Catalogue().manifest(name)["status"] in ("interrupted", "died", "finished")
    lab.assert_tidy()


@slow
def test_a_commit_that_is_not_in_this_clone_is_an_error(lab: Lab, tmp_path: Path) -> None:
    other = Lab(tmp_path, lab.server)
    shutil.copytree(lab.repository, other.repository, ignore=shutil.ignore_patterns(".git"))
    (tmp_path / "assets").symlink_to(lab.folder / "assets")
    result = other.run("tools/reproduce.py", "dirty")
    assert result.returncode == 2 and "is not a git repository" in result.stderr
    for arguments in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "other"]):
        other.git(*arguments)
    result = other.reproduce("dirty")
    commit = Catalogue().manifest("dirty")["git_commit"]
    assert result.returncode == 2 and f"commit {commit} is not in" in result.stderr
    assert "hint: fetch it" in result.stderr


# What is refused before anything is started


def saved(name: str = "exp", **facts: object) -> None:
    table = pd.DataFrame({"step": [1, 2], "loss": [2.0, 1.0]})
    code = {"git_commit": "0" * 40, "git_dirty": False, "git_diff": ""}
    known = {"project": "baseline", "config": {"seed": 0}, **code}
    save_experiment(name, table, metadata=known | facts)


def test_an_experiment_that_is_unknown_is_refused_with_the_nearest() -> None:
    saved("exp_001")
    with pytest.raises(ExperimentError, match="no experiment 'exp_01'") as error:
        reproduce("exp_01")
    assert "exp_001" in error.value.hint


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"git_commit": None}, "the code of"),
        ({"project": ""}, "the code of"),
        ({"git_dirty": True, "git_diff": None}, "more than 1 MB"),
        ({"config": {}}, "the configuration of"),
    ],
)
def test_what_is_not_recorded_cannot_be_run_again(facts: dict[str, object], reason: str) -> None:
    saved(**facts)
    with pytest.raises(ExperimentError, match=reason) as error:
        reproduce("exp")
    assert error.value.hint


def test_a_running_experiment_is_refused() -> None:
    with (
        start_experiment("alive", project="baseline"),
        pytest.raises(ExperimentError, match="is running"),
    ):
        reproduce("alive")


def test_a_name_that_is_taken_is_refused() -> None:
    saved()
    with pytest.raises(ExperimentError, match="'exp' already exists"):
        reproduce("exp", "exp")


def test_steps_before_the_first_row_are_refused() -> None:
    table = pd.DataFrame({"step": [10], "loss": [2.0]})
    facts = {"project": "baseline", "git_commit": "0" * 40, "config": {"seed": 0}}
    save_experiment("exp", table, metadata=facts)
    with pytest.raises(ExperimentError, match="nothing up to step 3") as error:
        reproduce("exp", steps=3)
    assert "step 10" in error.value.hint


def test_the_command_line_refuses_no_steps(run_tool: Callable[..., object]) -> None:
    result = run_tool("tools/reproduce.py", "exp", "--steps", "0")
    assert result.returncode == 2 and "at least 1" in result.stderr  # type: ignore[attr-defined]


def test_environments_differ_in_what_the_manifests_say() -> None:
    then = {"host": "a", "python": "3.11", "packages": {"torch": "2.10"}, "environment": "x"}
    now = {"host": "a", "python": "3.12", "packages": {"torch": "2.11"}, "environment": "y"}
    assert compare_environments(then, then) == {}
    assert compare_environments(then, now) == {
        "python": ("3.11", "3.12"),
        "torch": ("2.10", "2.11"),
    }
    other = then | {"environment": "y"}
    assert compare_environments(then, other) == {"other packages": ("x", "y")}
