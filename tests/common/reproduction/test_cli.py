"""Which seeds and variants a command line of a reproduction means."""

from __future__ import annotations

import sys

import pytest

from common.reproduction.cli import parse_arguments


def parsed(monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[int, list[str]]:
    monkeypatch.setattr(sys, "argv", ["reproduce.py", *words])
    arguments = parse_arguments("", "paper", ["a", "b", "c"], seeds=2, full_seeds=9, reduced=["c"])
    return arguments.seeds, arguments.only


@pytest.mark.parametrize(
    ("words", "seeds", "variants"),
    [
        ("", 2, "c"),
        ("--full", 9, "abc"),
        ("--full --seeds 4 --only b", 4, "b"),
        ("--only b a", 2, "ab"),  # in the order of the table
        ("--seeds 1", 1, "c"),
    ],
)
def test_what_is_run(
    monkeypatch: pytest.MonkeyPatch, words: str, seeds: int, variants: str
) -> None:
    assert parsed(monkeypatch, *words.split()) == (seeds, list(variants))


@pytest.mark.parametrize("words", ["--seeds 0", "--jobs -1", "--only d"])
def test_what_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    with pytest.raises(SystemExit) as refused:
        parsed(monkeypatch, *words.split())
    assert refused.value.code == 2
    assert words.split()[0] in capsys.readouterr().err
