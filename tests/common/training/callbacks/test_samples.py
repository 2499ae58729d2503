"""samples.jsonl: what a kill or a full disk left in it never stops a training."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from common.data.tokenizers import CharTokenizer
from common.training.callbacks.samples import Samples
from common.training.config import SampleConfig

TEXTS = ["a\u2028b\u0085c\x0bd", "\u00e9\r\n"]  # other ends of lines than "\n", and in pieces


def samples(path: Path) -> Samples:
    config = SampleConfig(prompts=("", "a"))
    return Samples(CharTokenizer("abc"), config, 0, path)


def trainer(step: int) -> Any:
    class Evaluator:
        def generate_samples(self, *_: Any, **__: Any) -> list[str]:
            return TEXTS

    return SimpleNamespace(step=step, model=SimpleNamespace(parameters=list), evaluator=Evaluator())


def read(path: Path) -> list[tuple[int, str]]:
    lines = path.read_bytes().split(b"\n")
    assert lines.pop() == b""
    return [(entry["step"], entry["text"]) for entry in map(json.loads, lines)]


def test_a_resume_keeps_every_text_before_its_step_whatever_is_in_it(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    for step in (10, 20, 30):
        samples(path).on_evaluate(trainer(step), {}, "val")
    samples(path).on_train_start(trainer(25))
    assert read(path) == [(step, text) for step in (10, 20) for text in TEXTS]


@pytest.mark.parametrize("end", [b'{"step": 20, "text": "\xc3', b"\xff\n", b"[]\n", b"null", b"{}"])
def test_what_is_no_whole_sample_is_forgotten(tmp_path: Path, end: bytes) -> None:
    path = tmp_path / "samples.jsonl"
    samples(path).on_evaluate(trainer(10), {}, "val")
    path.write_bytes(path.read_bytes() + end)
    samples(path).on_train_start(trainer(15))
    assert read(path) == [(10, text) for text in TEXTS]


def test_half_a_line_is_closed_off_before_the_next(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_bytes(b'{"step": 10, "te')
    samples(path).on_evaluate(trainer(20), {}, "val")
    first, *rest = path.read_bytes().split(b"\n")
    assert first == b'{"step": 10, "te' and len(rest) == 3


def test_a_full_disk_ends_no_training(caplog: pytest.LogCaptureFixture) -> None:
    samples(Path("/dev/full")).on_evaluate(trainer(10), {}, "val")
    assert "No space left on device; the samples of this step are not saved" in caplog.text
