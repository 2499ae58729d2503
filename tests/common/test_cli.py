"""The command lines of a project, as their users type them, right and wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from common.utils import start_experiment
from common.utils.paths import REPOSITORY_ROOT

pytestmark = pytest.mark.slow  # dozens of commands

TRAIN = "projects/baseline/train.py"
EVALUATE = "projects/baseline/evaluate.py"
SAMPLE = "projects/baseline/sample.py"
TINY = """
data: {path: %s, tokenizer: char, batch_size: 2, eval_batch_size: 4}
model: {num_layers: 1, hidden_size: 16, num_heads: 2, context_length: 16}
schedule: {warmup_steps: 1}
training: {max_steps: 4, eval_every_steps: 2, device: cpu}
samples: {max_new_tokens: 5}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat.\n" * 60)
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY % text)
    return path


@pytest.mark.parametrize("script", [TRAIN, EVALUATE, SAMPLE])
def test_help_ends_with_examples(run_tool, script: str) -> None:
    result = run_tool(script, "--help")
    assert result.returncode == 0 and "examples:" in result.stdout
    assert f"python {script}" in result.stdout


def test_the_resolved_configuration_can_be_seen_and_loaded_again(
    run_tool, config: Path, tmp_path: Path
) -> None:
    result = run_tool(TRAIN, "--config", config, "--print-config", "optimizer.lr=3e-4", "seed=5")
    assert result.returncode == 0, result.stderr
    shown = yaml.safe_load(result.stdout)
    assert shown["seed"] == 5 and shown["optimizer"]["lr"] == 3e-4
    assert shown["model"]["num_layers"] == 1 and shown["training"]["log_every_steps"] == 10
    (tmp_path / "again.yaml").write_text(result.stdout)
    again = run_tool(TRAIN, "--config", tmp_path / "again.yaml", "--print-config")
    assert again.stdout == result.stdout


def test_overrides_may_stand_before_and_after_the_options(run_tool, config: Path) -> None:
    result = run_tool(TRAIN, "seed=5", "--config", config, "--print-config", "optimizer.lr=0.5")
    assert "seed: 5" in result.stdout and "lr: 0.5" in result.stdout


def test_a_configuration_is_found_in_the_project_from_any_folder(run_tool, tmp_path: Path) -> None:
    configs = REPOSITORY_ROOT / "projects" / "baseline" / "configs"
    name = next(configs.glob("*.yaml")).name
    result = run_tool(TRAIN, "--config", f"configs/{name}", "--print-config", cwd=tmp_path)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--config", "{config}", "optimizer.lrr=1"], ["optimizer.lrr=1", "did you mean 'lr'"]),
        (["--config", "{config}", "optimizer.lr=fast"], ["optimizer.lr=fast", "number"]),
        (
            ["--config", "{config}", "training.max_steps=0"],
            ["training.max_steps=0", "greater than 0"],
        ),
        (["--config", "{config}", "max_steps"], ["argument 'max_steps'", "key.path=value"]),
        (["--config", "{config}", "model.num_heads=3"], ["16", "num_heads 3"]),
        (["--config", "{config}", "data.context_length=99"], ["data.context_length", "16"]),
        (["--config", "nothing.yaml"], ["no configuration file nothing.yaml"]),
        ([], ["--config is missing", "configs/"]),
        (["--name", "x", "--resume"], ["there is no experiment 'x'"]),
        pytest.param(
            ["--config", "{config}", "training.device=gpu"], ["gpu"], marks=pytest.mark.slow
        ),
    ],
)
def test_a_mistake_is_one_line_with_the_way_out_and_exit_code_2(
    run_tool, config: Path, assets_dir: Path, arguments: list[str], expected: list[str]
) -> None:
    result = run_tool(TRAIN, *(argument.format(config=config) for argument in arguments))
    assert result.returncode == 2, result.stderr
    assert result.stdout.strip() == "" and "Traceback" not in result.stderr
    first = result.stderr.splitlines()[0]
    assert first.startswith("error [")
    for text in expected:
        assert text in result.stderr
    assert not list(assets_dir.rglob("*.jsonl")), "a mistake takes no name"


@pytest.mark.parametrize("script", [EVALUATE, SAMPLE])
def test_a_run_that_is_not_there_is_told_with_the_nearest_one(
    run_tool, script: str, assets_dir: Path
) -> None:
    start_experiment("exp_001", project="baseline").finish()
    result = run_tool(script, "--name", "exp_01")
    assert result.returncode == 2 and result.stdout == ""
    assert "there is no experiment 'exp_01'" in result.stderr and "'exp_001'" in result.stderr


@pytest.mark.slow
def test_a_run_is_trained_evaluated_and_found_again(
    run_tool, config: Path, assets_dir: Path
) -> None:
    trained = run_tool(TRAIN, "--config", config, "--name", "exp_001")
    assert trained.returncode == 0, trained.stderr
    assert "--- result ---" in trained.stdout and "bits per byte" in trained.stdout
    assert (assets_dir / "outputs" / "experiments" / "exp_001.parquet").is_file()
    assert (assets_dir / "outputs" / "runs" / "exp_001" / "config.yaml").is_file()

    evaluated = run_tool(EVALUATE, "--name", "exp_001", "--checkpoint", "last")
    assert evaluated.returncode == 0, evaluated.stderr
    result = next(line for line in trained.stdout.splitlines() if line.startswith("validation"))
    numbers = result.split("loss ")[1]
    assert numbers in evaluated.stdout, "evaluate.py finds what train.py reported"

    listed = run_tool("tools/query_experiments.py", "--list", "--format", "json")
    (row,) = json.loads(listed.stdout)
    assert (row["name"], row["status"], row["project"]) == ("exp_001", "finished", "baseline")
    assert row["step"] == 4


@pytest.mark.parametrize("seed", ["18446744073709551616", "-1", "x"])
def test_a_seed_that_no_generator_takes_is_refused_at_once(run_tool, seed: str) -> None:
    result = run_tool(SAMPLE, "nothing", f"--seed={seed}")
    assert result.returncode == 2 and "--seed: must be an integer from 0" in result.stderr
