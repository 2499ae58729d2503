"""Lines that say how far something is: none of what is short, time left where it can be known."""

from __future__ import annotations

import pytest

from common.utils import progress
from common.utils.progress import time_left, with_progress


def mb(text: str) -> float:
    return len(text) / 1e6


def test_what_is_short_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(with_progress(range(5), "evaluating")) == [0, 1, 2, 3, 4]
    assert capsys.readouterr().err == ""


def test_what_is_long_says_how_far_it_is_with_and_without_a_length(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "EVERY_SECONDS", 0.0)
    assert list(with_progress([7, 8, 9], "evaluating")) == [7, 8, 9]
    assert list(with_progress(iter("ab").__iter__(), "scoring")) == ["a", "b"]
    assert list(with_progress((letter for letter in "ab"), "reading")) == ["a", "b"]
    documents = with_progress(["x" * 2_000_000] * 2, "encoding", amount=mb, total=4, unit="MB")
    assert len(list(documents)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == [
        "evaluating: 1 of 3 batches, 0 s left",
        "evaluating: 2 of 3 batches, 0 s left",
    ]
    assert lines[-2:] == ["reading: 1 batches", "encoding: 2 of 4 MB, 0 s left"]


def test_the_time_that_is_left() -> None:
    assert time_left(10, 5, 10) == "10 s left"
    assert time_left(60, 1, 6) == "5 min left"
    assert time_left(3600, 1, 11) == "10.0 h left"
    assert time_left(1, 0, 10) == time_left(1, 10, 10) == time_left(1, 3, 0) == ""
