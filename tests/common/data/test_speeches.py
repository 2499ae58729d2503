"""German speeches: their surprisal against a parser that shares no code, their entropy against their mean."""

from __future__ import annotations

import math

import pytest

from common.data import speeches
from common.data.speeches import GRAMMAR, generate_speeches
from tests.grammar_parser import Parser

PARSER = Parser(
    speeches._RULES, speeches._WORDS, {"Upper": lambda word: word[:1].upper() + word[1:]}
)


@pytest.mark.parametrize("rule", PARSER.rules)
def test_the_probabilities_of_every_rule_add_up_to_one(rule: str) -> None:
    assert sum(p for p, _ in PARSER.rules[rule]) == 1


def test_every_speech_has_one_derivation_whose_probability_is_its_surprisal() -> None:
    for text, surprisal in generate_speeches(200, seed=5):
        assert surprisal == pytest.approx(PARSER.surprisal("speech", text), rel=1e-12)


def test_the_average_of_many_speeches_is_the_entropy_within_its_standard_error() -> None:
    sample = list(generate_speeches(10_000, seed=1))
    columns = [s for _, s in sample], [float(len(text.encode())) for text, _ in sample]
    for exact, values in zip(GRAMMAR.entropy(), columns, strict=True):
        mean = sum(values) / len(values)
        deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
        assert abs(mean - exact) < 4 * deviation / math.sqrt(len(values))


def test_speeches_depend_on_the_seed_alone_and_leave_no_field_unfilled() -> None:
    texts = [text for text, _ in generate_speeches(200, seed=2)]
    assert texts == [text for text, _ in generate_speeches(200, seed=2)]
    assert texts[:5] != [text for text, _ in generate_speeches(5, seed=3)]
    for text in texts:
        assert "{" not in text and "  " not in text and text.endswith("\n") and "\n\n" not in text
    assert set("äöüß") < set("".join(texts).lower()), "not plain ASCII, as German is"
