"""The commands of a user under torchrun: killed in every way and resumed, a run ends as if nothing had been."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file

from common.training.checkpoints import steps_in
from common.utils import query_experiments
from common.utils.paths import REPOSITORY_ROOT, get_runs_dir
from tests.budget import budget, repeat
from tests.conftest import RunTool
from tests.fork_server import ForkServer
from tests.torchrun import fork_processes, run_processes, torchrun, workers

BASELINE = REPOSITORY_ROOT / "projects" / "baseline"
LAST_STEP = 120
CONFIG = """
seed: 3
data: {tokenizer: char, batch_size: 4, path: TEXT, document_mask: true}
model: {num_layers: 2, num_heads: 2, hidden_size: 8, context_length: 16, dropout: 0.2}
schedule: {warmup_steps: 5}
training:
  max_steps: 120
  gradient_accumulation_steps: 2
  ema_decay: 0.9
  activation_checkpointing: true
  early_stopping_patience: 50
  eval_every_steps: 30
  checkpoint_every_steps: 10
  log_every_steps: 10
  keep_checkpoints: 3
  device: cpu
  precision: fp32
  compile: false
samples: {prompts: ["", "the "], max_new_tokens: 40}
"""


def kill_one(launcher: psutil.Process, ranks: list[psutil.Process]) -> None:
    ranks[0].kill()


def kill_all(launcher: psutil.Process, ranks: list[psutil.Process]) -> None:
    for process in [launcher, *ranks]:
        process.kill()


def kill_launcher(launcher: psutil.Process, ranks: list[psutil.Process]) -> None:
    launcher.kill()


KILLS: dict[str, Callable[[psutil.Process, list[psutil.Process]], None]] = {
    "one": kill_one,
    "all": kill_all,
    "torchrun": kill_launcher,
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat, the dog ran to the red house. " * 60)
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG.replace("TEXT", str(text)))
    return path


def train_until_killed(how: str, *arguments: object) -> str:
    """What was printed; after it no process is left."""
    folder = get_runs_dir() / "killed" / "checkpoints"
    before = steps_in(folder)[-1:]
    with torchrun(2, BASELINE / "train.py", *arguments) as process:
        deadline = time.monotonic() + 300
        while steps_in(folder)[-1:] == before:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.01)
        ranks = workers(process)
        assert len(ranks) == 2
        KILLS[how](psutil.Process(process.pid), ranks)
        _, left = psutil.wait_procs(ranks, timeout=300)
        assert not left
        output, _ = process.communicate(timeout=300)
    return output


def rows(name: str) -> list[dict[str, Any]]:
    frame = query_experiments(
        "SELECT split, step, loss, learning_rate, gradient_norm FROM experiments "
        f"WHERE experiment_name = '{name}' AND split IN ('train', 'val') ORDER BY split, step"
    )
    found: list[dict[str, Any]] = frame.fillna(0.0).to_dict("records")
    return found


def samples(name: str) -> list[dict[str, Any]]:
    text = (get_runs_dir() / name / "samples.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.rstrip("\n").split("\n")]


def files(name: str) -> dict[str, Any]:
    """Every tensor of the last checkpoint, as it lies on the disk."""
    folder = get_runs_dir() / name / "checkpoints" / f"step_{LAST_STEP}"
    return {
        f"{file.name} {key}": tensor
        for file in folder.glob("*.safetensors")
        for key, tensor in load_file(file).items()
    }


@pytest.mark.slow
@repeat(
    ("strategy", "kills"),
    [("fsdp", budget(["torchrun"], ["one", "all", "torchrun"])), ("ddp", ["one", "torchrun"])],
)
def test_a_run_that_is_killed_ends_as_one_that_is_not(
    strategy: str, kills: list[str], config: Path, run_tool: RunTool, fork_server: ForkServer
) -> None:
    start = ["--config", config, f"training.distributed={strategy}"]
    code, output = fork_processes(fork_server, 2, BASELINE / "train.py", *start, "--name", "whole")
    assert code == 0, output
    assert output.count("--- result ---") == 1
    arguments = [*start, "--name", "killed"]
    for how in kills:
        output = train_until_killed(how, *arguments)
        if how == "one":
            told = output.count("error [training]: another process of this training died")
            assert told <= 1, output  # torchrun may be faster to end the other one
        if how == "torchrun":
            assert output.count("is saved; continue with --name killed --resume") == 1, output
        assert "Traceback" not in output.split("torch/distributed/elastic")[0], output
        arguments = ["--name", "killed", "--resume"]
    code, output = fork_processes(fork_server, 2, BASELINE / "train.py", *arguments)
    assert code == 0, output
    found, expected = files("killed"), files("whole")
    assert found.keys() == expected.keys()
    assert all(tensor.equal(found[key]) for key, tensor in expected.items())
    assert rows("killed") == rows("whole")
    assert samples("killed") == samples("whole")
    assert [entry["step"] for entry in samples("whole")] == [30, 30, 60, 60, 90, 90, 120, 120]

    judged = [
        run_tool(BASELINE / "evaluate.py", name, "--checkpoint", "last").stdout
        for name in ("killed", "whole")
    ]
    final = next(row for row in rows("whole") if (row["split"], row["step"]) == ("val", LAST_STEP))
    for text in judged:
        assert f"loss {final['loss']:.4f} nats" in text
    written = run_tool(BASELINE / "sample.py", "killed", "--max-new-tokens", "40")
    assert written.returncode == 0, written.stderr
    if strategy == "fsdp":  # parts, which one process reads
        exported = run_tool("tools/cli.py", "export", "killed", "--format", "hub")
        assert exported.returncode == 0, exported.stderr


@pytest.mark.slow
def test_one_process_answers_the_command_line(config: Path) -> None:
    train = BASELINE / "train.py"
    code, output = run_processes(2, train, "--help")
    assert (code, output.count("usage:")) == (0, 1)
    code, output = run_processes(2, train, "--config", config, "training.max_step=3")
    assert code != 0
    assert output.count("did you mean 'max_steps'?") == 1, output
    code, output = run_processes(2, train, "--confi", config)
    assert output.count("error [usage]") == 1, output


@pytest.mark.slow
def test_processes_that_do_not_meet_say_why(config: Path, run_tool: RunTool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        by_hand = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        told = train_by_hand(run_tool, config, RANK="0", **by_hand)
    assert f"error [training]: another program listens at 127.0.0.1:{port}" in told
    assert "Traceback" not in told
    told = train_by_hand(run_tool, config, WORLD_SIZE="2")
    assert "error [training]: WORLD_SIZE=2 means several processes" in told
    assert "Traceback" not in told


def train_by_hand(run_tool: RunTool, config: Path, **environment: str) -> str:
    done = run_tool(BASELINE / "train.py", "--config", config, env=environment, timeout=120)
    assert done.returncode == 2
    return done.stderr
