"""Judging a run on its own and on other texts, as evaluate.py does it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from common.data.texts import read_texts
from common.data.tokenizers import BPETokenizer, CharTokenizer
from common.errors import ConfigError, DataError
from common.training import Evaluator
from common.training.evaluation_report import evaluate_texts, json_ready, measure_samples
from common.training.experiment import eval_windows
from common.training.generation_metrics import generation_metrics
from common.training.prediction_metrics import measure_predictions
from common.training.trained_run import load_run
from common.utils.paths import get_runs_dir
from tests.untrained_run import make_run

EVALUATE = "projects/baseline/evaluate.py"
TEXT = "the cat sat on the mat and the dog saw it.\n" * 40


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "cats.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def other(tmp_path: Path) -> Path:
    path = tmp_path / "dogs.txt"
    path.write_text("the dog and the cat. " * 30)
    return path


@pytest.mark.slow
def test_the_whole_report_is_printed_stored_and_drawn(
    text: Path, other: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, model, data = make_run("a", text)
    printed = evaluate_texts(load_run("a"), "val", [other], full_report=True)
    directory = get_runs_dir() / "a"
    report = json.loads((directory / "report.json").read_text())
    assert (directory / "report.png").read_bytes().startswith(b"\x89PNG")
    assert (report["name"], report["checkpoint"]) == ("a", "step_5")

    assert list(report["sets"]) == list(printed) == ["val", "dogs.txt"]
    token_bytes = data.tokenizer.token_bytes
    found = measure_predictions(
        model, eval_windows(config, data.tokens("val")), token_bytes=token_bytes
    )
    stored = report["sets"]["val"]
    assert {name: stored[name] for name in found.scalars()} == found.scalars() == printed["val"]
    assert stored["position_loss"] == [None, *found.position_loss[1:].tolist()]
    assert sum(stored["position_counts"]) == len(data.tokens("val")) - 1
    assert sum(stored["calibration"]["counts"]) == stored["num_tokens"]
    assert report["sets"]["dogs.txt"]["num_tokens"] == len(other.read_text()) - 1
    assert list(report["samples"]) == ["the text itself", "sampled (temperature 0.8)", "greedy"]

    shown = capsys.readouterr().out
    for title in ("val", "dogs.txt", "greedy", "calibration_error", "8-15", "report.json"):
        assert title in shown
    assert f"{found.accuracy:.6g}" in shown


def test_other_texts_alone_are_judged_by_the_loss_and_leave_no_files(
    text: Path, other: Path
) -> None:
    config, model, data = make_run("a", text, "bpe")
    metrics = evaluate_texts(load_run("a"), "val", [other])
    evaluator = Evaluator(model, token_bytes=data.tokenizer.token_bytes)
    assert metrics["val"] == evaluator.evaluate(eval_windows(config, data.tokens("val")))
    bits = metrics["dogs.txt"]["loss"] * metrics["dogs.txt"]["num_tokens"] / np.log(2)
    first = data.tokenizer.decode([int(data.tokenizer.encode(other.read_text())[0])])
    size = other.stat().st_size - len(first)  # the first token is not predicted
    assert metrics["dogs.txt"]["bits_per_byte"] == pytest.approx(bits / size, rel=1e-9)
    assert not (get_runs_dir() / "a" / "report.json").exists()


def test_the_documents_of_a_folder_are_joined_as_in_training(tmp_path: Path) -> None:
    tokenizer = CharTokenizer.train(["abc"])
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "1.txt").write_text("ab")
    (tmp_path / "texts" / "2.txt").write_text("ca")
    (tmp_path / "b.txt").write_text("bb")
    sets = read_texts([tmp_path / "texts", tmp_path / "b.txt"], tokenizer)
    assert {name: tokens.tolist() for name, tokens in sets.items()} == {
        "texts": [1, 2, 0, 3, 1],
        "b.txt": [2, 2],
    }


def test_a_name_that_is_taken_becomes_the_path(tmp_path: Path) -> None:
    tokenizer = CharTokenizer.train(["ab"])
    (tmp_path / "x").mkdir()
    paths = [tmp_path / "a.txt", tmp_path / "x" / "a.txt", tmp_path / "val"]
    for path in paths:
        path.write_text("abab")
    sets = read_texts(paths, tokenizer, taken=["val"])
    assert list(sets) == ["a.txt", str(tmp_path / "x" / "a.txt"), str(tmp_path / "val")]
    with pytest.raises(ConfigError, match="given twice"):
        read_texts([paths[0], paths[1], paths[1]], tokenizer)


@pytest.mark.parametrize("content", ["", "a"])
def test_a_text_without_anything_to_predict_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text(content)
    tokenizer = BPETokenizer.train(["a b c"], 270)
    with pytest.raises(DataError, match=r"short\.txt has [01] tokens"):
        read_texts([tmp_path / "short.txt"], tokenizer)


def test_a_text_that_is_missing_or_no_text_is_named(tmp_path: Path) -> None:
    tokenizer = BPETokenizer.train(["a b c"], 270)
    (tmp_path / "latin.txt").write_bytes(b"the c\xe4t")
    with pytest.raises(DataError, match=r"latin\.txt is not UTF-8"):
        read_texts([tmp_path / "latin.txt"], tokenizer)
    with pytest.raises(DataError, match=r"no such file or folder: .*nothing\.txt"):
        read_texts([tmp_path / "nothing.txt"], tokenizer)


def test_samples_are_measured_beside_the_text_that_follows_the_same_prefixes(text: Path) -> None:
    config, model, data = make_run("a", text)
    tokens = data.tokens("train")
    found = measure_samples(model, tokens, config.samples, seed=0)
    length = 150
    starts = np.linspace(0, len(tokens) - length, len(tokens) // length).astype(int)
    windows = [tokens[start : start + length].tolist() for start in starts]
    assert found["the text itself"] == generation_metrics([window[50:] for window in windows])
    prefixes = torch.tensor([window[:50] for window in windows])
    greedy = model.generate(prefixes, 100, temperature=0)[:, 50:].tolist()
    assert found["greedy"] == generation_metrics(greedy)
    assert found == measure_samples(model, tokens, config.samples, seed=0)
    assert found != measure_samples(model, tokens, config.samples, seed=1)


@pytest.mark.parametrize("length", [2, 3, 149, 151])
def test_samples_of_short_texts(text: Path, length: int) -> None:
    config, model, data = make_run("a", text)
    found = measure_samples(model, data.tokens("train")[:length], config.samples, seed=0)
    assert all(0 < values["distinct_1"] <= 1 for values in found.values())


def test_what_json_has_no_word_for_is_null() -> None:
    value = {"a": np.array([1.5, np.nan]), "b": (np.inf, np.int64(3)), "c": {"d": None, 1: "x"}}
    assert json_ready(value) == {
        "a": [1.5, None],
        "b": [None, 3],
        "c": {"d": None, "1": "x"},
    }


# As users type it


@pytest.mark.slow
def test_evaluate_writes_the_report_from_any_folder(
    text: Path, other: Path, tmp_path: Path, run_tool
) -> None:
    make_run("a", text)
    arguments = ["--name", "a", "--full-report", "--data", "dogs.txt", "--data", "cats.txt"]
    result = run_tool(EVALUATE, *arguments, cwd=tmp_path, env={"OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines() if line]
    assert [line[0] for line in lines[3:6]] == ["val", "dogs.txt", "cats.txt"]
    assert (get_runs_dir() / "a" / "report.png").is_file()
    assert (get_runs_dir() / "a" / "report.json").is_file()


@pytest.mark.slow
def test_a_wrong_text_is_told_in_one_line_with_the_way_out(
    text: Path, tmp_path: Path, run_tool
) -> None:
    make_run("a", text)
    (tmp_path / "strange.txt").write_text("the cät")
    strange = tmp_path / "strange.txt"
    result = run_tool(EVALUATE, "--name", "a", "--data", text, strange, "--full-report")
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("error [data]") and "Traceback" not in result.stderr
    for reason in ("strange.txt", "'ä' (U+00E4)", "data.tokenizer=bpe"):
        assert reason in result.stderr
    assert not (get_runs_dir() / "a" / "report.json").exists()
