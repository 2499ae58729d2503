"""`tools/analyze.py` as users type it, over a run that was never trained."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from common.utils.paths import REPOSITORY_ROOT, get_runs_dir
from tests.fork_server import ForkServer
from tests.untrained_run import make_run

TOOL = "tools/analyze.py"
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("the cat sat on the mat and the dog saw it.\n" * 40)
    return path


@pytest.fixture
def analyze(run_tool: Any, text: Path) -> Any:
    def run(*arguments: object, **options: Any) -> Any:
        result = run_tool(TOOL, *arguments, cwd=text.parent, env=ONE_THREAD, **options)
        assert "Traceback" not in result.stderr, result.stderr
        return result

    return run


@pytest.mark.slow
def test_surprisal_has_the_numbers_of_evaluate(text: Path, analyze: Any, run_tool: Any) -> None:
    make_run("a", text, "bpe")
    other = text.parent / "other.txt"
    other.write_text("a <b>mat</b> sat on the cat, é!\n" * 5)
    result = analyze("surprisal", "--name", "a", "--text", "other.txt")
    assert result.returncode == 0, result.stderr
    page = get_runs_dir() / "a" / "analysis" / "surprisal_other.html"
    assert str(page.relative_to(text.parent)) in result.stdout and page.stat().st_size > 10_000
    found = re.search(r"bits per byte +([\d.]+)", result.stdout)
    judged = run_tool(
        "projects/baseline/evaluate.py", "--name", "a", "--data", other, env=ONE_THREAD
    )
    expected = re.search(r"other\.txt +\S+ +\S+ +(\S+)", judged.stdout)
    assert found is not None and expected is not None, judged.stdout
    assert float(found[1]) == pytest.approx(float(expected[1]), rel=1e-5)  # 6 digits are printed


@pytest.mark.slow
def test_attention_embeddings_neighbours_and_lit(text: Path, analyze: Any) -> None:
    make_run("a", text, "bpe")
    prompt = ["--name", "a", "--prompt", "the cat <script> sat"]
    result = analyze("attention", *prompt, "--output", "heads.png")
    assert result.returncode == 0 and "entropy_bits" in result.stdout, result.stderr
    assert (text.parent / "heads.png").read_bytes()[1:4] == b"PNG"
    result = analyze("embeddings", "--name", "a", "--output", "tokens.html")
    assert result.returncode == 0 and "% along the first axis" in result.stdout, result.stderr
    assert "<!doctype html>" in (text.parent / "tokens.html").read_text()
    arguments = ["--name", "a", "--token", " the", "--top", 3, "--format", "json"]
    rows = json.loads(analyze("neighbors", *arguments).stdout)
    assert [row["rank"] for row in rows] == [1, 2, 3] and "␣the" not in [r["token"] for r in rows]
    result = analyze("lit", "--name", "a", "--output", "lit", "--examples", 3)
    assert result.returncode == 0 and "uv run lit/run_lit.py" in result.stdout, result.stderr
    assert len((text.parent / "lit" / "examples.jsonl").read_text().splitlines()) == 3


@pytest.mark.slow
def test_routing_and_states(text: Path, analyze: Any) -> None:
    layers = ["model.layers=gru attention", "model.num_layers=2", "model.positions=none"]
    experts = ["model.feedforward=moe", "model.options={moe: {num_experts: 4, top_k: 2}}"]
    make_run("a", text, overrides=[*layers, *experts])
    result = analyze("routing", "--name", "a", "--text", "text.txt")
    page = get_runs_dir() / "a" / "analysis" / "routing_text.html"
    assert result.returncode == 0 and "excess_load" in result.stdout, result.stderr
    assert str(page.relative_to(text.parent)) in result.stdout and page.stat().st_size > 10_000
    result = analyze("routing", "--name", "a", "--text", "text.txt", "--output", "loads.png")
    assert result.returncode == 0, result.stderr
    result = analyze("states", "--name", "a", "--text", "text.txt")
    assert result.returncode == 0 and "the first 16 of 1,7" in result.stdout, result.stderr
    assert (page.parent / "states_text.html").stat().st_size > 10_000
    states = ["states", "--name", "a", "--text", "text.txt", "--context-length", 9]
    result = analyze(*states, "--output", "states.png")
    assert result.returncode == 0 and "prediction" in result.stdout, result.stderr
    for picture in ("loads.png", "states.png"):
        assert (text.parent / picture).read_bytes()[1:4] == b"PNG"


@pytest.mark.slow
def test_a_text_from_standard_input(text: Path, fork_server: ForkServer) -> None:
    make_run("a", text, "bpe")
    command = (REPOSITORY_ROOT / TOOL, "surprisal", "--name", "a", "--text", "-")
    good = fork_server.run(*command, input=b"the cat sat")
    assert good.returncode == 0 and "bits per byte" in good.stdout, good.stderr
    bad = fork_server.run(*command, input=b"the \xff")
    assert bad.returncode == 2 and "not UTF-8" in bad.stderr and "Traceback" not in bad.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["surprisal", "--name", "b", "--text", "text.txt"], "there is no experiment 'b'"),
        (["surprisal", "--name", "a", "--text", "none.txt"], "no such file or folder: none.txt"),
        (
            ["surprisal", "--name", "a", "--text", "text.txt", "--context-length", 17],
            "17 tokens are more than the model's context of 16",
        ),
        (["attention", "--name", "a", "--prompt", "x", "--output", "x.gif"], ".html or .png"),
        (["attention", "--name", "a", "--prompt", ""], "at least two tokens"),
        (
            ["neighbors", "--name", "a", "--token", "the cat"],
            "'the cat' is 7 tokens: t h e ␣ c a t",
        ),
        (["neighbors", "--name", "a", "--token", "é"], "not in the vocabulary"),
        (["lit", "--name", "a", "--output", "."], "not empty"),
        (["routing", "--name", "a", "--text", "text.txt"], "no experts: its feed-forward layers"),
        (["routing", "--name", "a", "--text", "text.txt", "--output", "x.gif"], ".html or .png"),
        (["states", "--name", "a", "--text", "text.txt"], "no recurrent layer: its layers mix"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(map(str, value[:1])),
)
def test_mistakes_are_told_in_one_line(
    arguments: list[str], reason: str, text: Path, analyze: Any
) -> None:
    make_run("a", text)
    result = analyze(*arguments)
    assert result.returncode == 2 and result.stdout == "" and reason in result.stderr, result.stderr


@pytest.mark.slow
def test_a_model_without_attention_is_refused_with_the_reason(text: Path, analyze: Any) -> None:
    make_run("a", text, overrides=["model.mixer=lstm", "model.positions=none"])
    result = analyze("attention", "--name", "a", "--checkpoint", "last", "--prompt", "the")
    assert result.returncode == 2 and "no attention: its layers mix tokens by lstm" in result.stderr
