"""tools/compress.py over a trained run: what it makes is judged and sampled like any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from common.experiments.catalogue import Catalogue
from common.training import load_run
from common.utils.paths import get_runs_dir
from tests.untrained_run import make_run

TOOL = "tools/compress.py"


@pytest.fixture(autouse=True)
def run(tmp_path: Path) -> Any:
    path = tmp_path / "text.txt"
    path.write_text("the cat sat on the mat and the dog saw it.\n" * 40)
    return make_run("a", path, "bpe")


def loaded(name: str) -> Any:
    return load_run(name).model.eval()


@pytest.mark.slow
def test_a_quantised_run_is_an_experiment_like_any_other(run: Any, run_tool: Any) -> None:
    result = run_tool(TOOL, "--name", "a", "--quantize", "int8")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    header = next(line for line in lines if "tokens per second" in line)
    assert header.split()[:2] == ["experiment", "loss"]
    before, after, ratio = (
        next(line for line in lines if line.split()[:1] == [label]).split()
        for label in ("a", "a_int8", "ratio")
    )
    assert float(after[1]) == pytest.approx(float(before[1]), rel=0.02)
    assert float(after[3]) < 0.5 * float(before[3])
    assert float(ratio[3]) == pytest.approx(float(after[3]) / float(before[3]), rel=0.05)
    manifest = Catalogue().manifest("a_int8")
    assert manifest["status"] == "finished" and manifest["tags"] == ["compressed:a"]
    assert manifest["parameters"] == run[1].num_parameters()
    assert loaded("a_int8").quantization == {"kind": "int8", "group_size": 32}
    judged = run_tool("projects/baseline/evaluate.py", "--name", "a_int8")
    assert judged.returncode == 0 and f"{float(after[1]):.3f}"[:4] in judged.stdout, judged.stderr
    written = run_tool(
        "projects/baseline/sample.py", "--name", "a_int8", "--prompt", "the cat", "--seed", 1
    )
    assert written.returncode == 0 and written.stdout.startswith("the cat"), written.stderr


@pytest.mark.slow
def test_a_pruned_run_has_a_configuration_of_its_own(run: Any, run_tool: Any) -> None:
    result = run_tool(TOOL, "--name", "a", "--prune", "neurons=0.25", "heads=0.5", "--to", "small")
    assert result.returncode == 0, result.stderr
    model = loaded("small")
    assert (model.config.intermediate_size, model.config.num_heads) == (48, 1)
    assert model.config.size_of_heads == 8
    assert model.num_parameters() < run[1].num_parameters()
    again = run_tool(TOOL, "--name", "small", "--prune", "magnitude=0.5", "--quantize", "int8")
    assert again.returncode == 0, again.stderr
    both = loaded("small_magnitude50_int8")
    zeros = (both.blocks[0].feedforward.input.weight == 0).float().mean()
    assert float(zeros) >= 0.5 and torch.isfinite(both(torch.zeros(1, 4).long())["logits"]).all()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "nothing to do"),
        (["--prune", "layers=0.5"], "unknown kind of pruning 'layers'"),
        (["--prune", "heads"], "invalid pruning 'heads'"),
        (["--prune", "heads=1.5"], "between 0 and 1"),
        (["--quantize", "int4"], "does not fit"),
        (["--quantize", "int8", "--to", "a"], "'a'"),
        (["--quantize", "int8", "--checkpoint", "9"], "no checkpoint '9'"),
        (["--quantize", "int2"], "invalid choice: 'int2'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_wrong_is_told_in_one_line(
    arguments: list[str], reason: str, run_tool: Any
) -> None:
    result = run_tool(TOOL, "--name", "a", *arguments)
    assert result.returncode == 2 and result.stdout == "", result.stdout
    assert reason in result.stderr and "Traceback" not in result.stderr
    assert [path.name for path in get_runs_dir().iterdir()] == ["a"]
