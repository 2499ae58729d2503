"""The baseline's configurations and scripts, in processes of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from common.utils import query_experiments

NO_THREADS = {"OMP_NUM_THREADS": "1"}


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["llama", "char_lstm"])
def test_a_preset_trains_evaluates_and_is_stored(
    preset: str, tmp_path: Path, run_tool: Any
) -> None:
    (tmp_path / "text.txt").write_text("abcabcabd " * 400)
    (tmp_path / "own.yaml").write_text(f"""
data: {{path: {tmp_path}/text.txt, tokenizer: char, batch_size: 8}}
model: {{preset: {preset}, num_layers: 1, num_heads: 2, hidden_size: 32, context_length: 16}}
optimizer: {{lr: 1e-2}}
schedule: {{warmup_steps: 5}}
training: {{max_steps: 80, device: cpu, tensorboard: true}}
samples: {{prompts: [abc], max_new_tokens: 10}}
""")
    result = run_tool(
        "projects/baseline/train.py", "--config", "own.yaml", cwd=tmp_path, env=NO_THREADS
    )
    assert result.returncode == 0, result.stderr
    run = query_experiments("SELECT name, status, project, parameters, tokens FROM runs").iloc[0]
    assert (run["name"], run["status"], run["project"]) == ("own_001", "finished", "baseline")
    assert run["tokens"] == 80 * 8 * 16 and run["parameters"] > 1000
    losses = query_experiments("SELECT loss FROM experiments WHERE split = 'train' ORDER BY step")
    # The text repeats itself: its entropy is close to 0.
    assert losses["loss"].iloc[-1] < 0.5 < losses["loss"].iloc[0]
    assert list((tmp_path / "assets/outputs/runs/own_001/tensorboard").glob("events.*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--config", "nothing.yaml"], "no configuration file nothing.yaml"),
        ([], "--config is missing"),
        (["--config", "configs/char_gpt2.yaml", "model.num_heads=3"], "num_heads 3"),
        (["--config", "configs/char_gpt2.yaml", "data.context_length=65"], "context_length"),
        (["--name", "unheard_of", "--resume"], "no experiment 'unheard_of'"),
    ],
)
def test_mistakes_are_told_in_one_line(
    arguments: list[str], reason: str, tmp_path: Path, run_tool: Any
) -> None:
    result = run_tool("projects/baseline/train.py", *arguments, cwd=tmp_path)
    assert result.returncode == 2 and result.stdout == ""
    assert reason in result.stderr and "Traceback" not in result.stderr
    assert result.stderr.count("error [") == 1


@pytest.mark.slow
def test_sampling_with_impossible_options_is_told_in_one_line(
    tmp_path: Path, run_tool: Any
) -> None:
    (tmp_path / "text.txt").write_text("abcabcabd " * 100)
    small = ["model.hidden_size=8", "model.num_layers=1", "training.max_steps=2"]
    text = f"data.path={tmp_path / 'text.txt'}"
    trained = run_tool(
        "projects/baseline/train.py",
        *("--config", "configs/char_gpt2.yaml", "--name", "a", *small, text),
        env=NO_THREADS,
    )
    assert trained.returncode == 0, trained.stderr
    for options in ("--max-new-tokens -5", "--temperature -1", "--top-p 7", "--checkpoint ²"):
        sample = ("projects/baseline/sample.py", "--name", "a", *options.split())
        result = run_tool(*sample, env=NO_THREADS)
        assert result.returncode == 2, options
        assert result.stderr.startswith("error [") and "Traceback" not in result.stderr
