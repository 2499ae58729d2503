"""The evaluation harness over a trained run, from local files, as users type it."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from common.utils.paths import get_runs_dir
from tests.untrained_run import make_run

TOOL = "tools/run_lm_eval.py"
needs_harness = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="the evaluation harness is not installed"
)
CHOICES = [" cat", " dog", " mat"]
QUESTIONS = [
    {"question": f"{start} the", "choices": CHOICES, "answer": number % 3}
    for number, start in enumerate(["the cat and", "it saw", "a", "the dog sat on", "and", "on"])
]
CHOOSING = """
task: pets
tag: animals
dataset_path: json
dataset_kwargs: {data_files: {test: pets.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
target_delimiter: ""
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
WRITING = """
task: writing
dataset_path: json
dataset_kwargs: {data_files: {test: pets.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["zz"], max_gen_toks: 4}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a text, and tasks beside their data."""
    (tmp_path / "text.txt").write_text("the cat sat on the mat and the dog saw it.\n" * 40)
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "pets.yaml").write_text(CHOOSING)
    (tmp_path / "tasks" / "writing.yaml").write_text(WRITING)
    (tmp_path / "pets.jsonl").write_text("".join(json.dumps(q) + "\n" for q in QUESTIONS))
    return tmp_path


def offline(folder: Path) -> dict[str, str]:
    """Where nobody answers, and with a cache of our own."""
    nobody = "http://127.0.0.1:9"
    proxies = {name: nobody for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")}
    return {**proxies, "HF_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}


@torch.no_grad()
def log_probability(model: Any, before: list[int], after: list[int]) -> float:
    total = 0.0
    for position in range(len(after)):
        inputs = [*before, *after[:position]][-16:]
        scores = model(torch.tensor([inputs]))["logits"][0, -1].double().log_softmax(0)
        total += float(scores[after[position]])
    return total


@needs_harness
@pytest.mark.slow
def test_tasks_run_offline_and_are_stored_with_the_run(folder: Path, run_tool: Any) -> None:
    _, model, data = make_run("a", folder / "text.txt", "bpe")
    encode = data.tokenizer.encode
    arguments = ["a", "--tasks", "tasks", "--log-samples", "--batch-size", 5]
    result = run_tool(TOOL, *arguments, cwd=folder, env=offline(folder))
    assert result.returncode == 0, result.stderr
    (file,) = (get_runs_dir() / "a" / "evaluations").glob("lm_eval_*.json")
    assert file.name in result.stdout and "|pets" in result.stdout and "|writing" in result.stdout
    stored = json.loads(file.read_text())
    assert stored["run"] == {"name": "a", "checkpoint": "step_5"}

    right = 0
    for question, sample in zip(QUESTIONS, stored["samples"]["pets"], strict=True):
        before = encode(question["question"]).tolist()
        expected = [log_probability(model, before, encode(c).tolist()) for c in CHOICES]
        found = [float(answer[0]) for answer in sample["filtered_resps"]]
        assert found == pytest.approx(expected, rel=1e-4)
        right += max(range(3), key=expected.__getitem__) == question["answer"]
    assert stored["results"]["pets"]["acc,none"] == pytest.approx(right / len(QUESTIONS))

    for question, sample in zip(QUESTIONS, stored["samples"]["writing"], strict=True):
        ids = encode(question["question"]).tolist()
        end = data.tokenizer.end_of_text
        output = model.generate(torch.tensor([ids]), 4, temperature=0, stop_tokens=[end])[0]
        assert sample["filtered_resps"] == [data.tokenizer.decode(output.tolist()[len(ids) :])]


@needs_harness
@pytest.mark.slow
def test_tasks_are_chosen_by_name_and_limited_and_no_result_is_overwritten(
    folder: Path, run_tool: Any
) -> None:
    make_run("a", folder / "text.txt", "bpe")
    named = ["--tasks", "animals", "--include-path", "tasks", "--limit", 2]
    for choice in (named, ["--tasks", "tasks/pets.yaml", "--limit", 2]):
        result = run_tool(TOOL, "a", *choice, cwd=folder, env=offline(folder))
        assert result.returncode == 0, result.stderr
        assert "|pets" in result.stdout and "writing" not in result.stdout
    files = list((get_runs_dir() / "a" / "evaluations").glob("*.json"))
    assert len(files) == 2
    assert all(json.loads(f.read_text())["n-samples"]["pets"]["effective"] == 2 for f in files)


@needs_harness
@pytest.mark.slow
def test_data_that_would_have_to_be_downloaded_is_told(folder: Path, run_tool: Any) -> None:
    make_run("a", folder / "text.txt", "bpe")
    (folder / "tasks" / "far.yaml").write_text(
        CHOOSING.replace("task: pets", "task: far").replace("path: json", "path: someone/far")
    )
    result = run_tool(TOOL, "a", "--tasks", "tasks/far.yaml", cwd=folder, env=offline(folder))
    assert result.returncode == 2 and result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if not line.startswith("  ")]
    assert lines[-1].startswith("error [config]: cannot load tasks/far.yaml"), result.stderr
    assert "HF_HUB_OFFLINE" in result.stderr and "Traceback" not in result.stderr


def test_a_run_that_is_not_there_is_told_with_the_nearest_one(folder: Path, run_tool: Any) -> None:
    make_run("exp_001", folder / "text.txt")
    result = run_tool(TOOL, "exp_01", "--tasks", "tasks")
    assert result.returncode == 2 and result.stdout == ""
    assert "there is no experiment 'exp_01'" in result.stderr and "'exp_001'" in result.stderr


def test_a_run_of_a_project_that_is_not_here_is_told(folder: Path, run_tool: Any) -> None:
    make_run("a", folder / "text.txt", project="../gone")
    result = run_tool(TOOL, "a", "--tasks", "tasks")
    assert result.returncode == 2 and "'../gone'" in result.stderr


def test_without_the_harness_the_way_to_install_it_is_told(folder: Path, run_tool: Any) -> None:
    make_run("a", folder / "text.txt")
    (folder / "hidden" / "lm_eval").mkdir(parents=True)
    (folder / "hidden" / "lm_eval" / "__init__.py").write_text("raise ImportError('not here')")
    path = f"{folder / 'hidden'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    result = run_tool(TOOL, "a", "--tasks", "tasks", env={"PYTHONPATH": path})
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("error [package]") and "lm-eval" in result.stderr
