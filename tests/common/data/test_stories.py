"""The entropy and every surprisal, against a parser and a calculation that share no code with them."""

from __future__ import annotations

import math
import re
from fractions import Fraction

import pytest

from common.data import stories
from common.data.stories import entropy_per_story, generate_stories
from tests.grammar_parser import Parser

MALE = {"Tom", "Ben", "Max", "Finn", "Otto"}
PARSER = Parser(
    stories._RULES, stories._WORDS, {"they": lambda word: "he" if word in MALE else "she"}
)
RULES, WORDS, zipf = PARSER.rules, PARSER.words, PARSER.zipf


def probabilities(text: str) -> list[Fraction]:
    return PARSER.probabilities("story", text)


@pytest.mark.parametrize("rule", RULES)
def test_the_probabilities_of_every_rule_add_up_to_one(rule: str) -> None:
    assert sum(p for p, _ in RULES[rule]) == 1


def test_every_story_has_one_derivation_whose_probability_is_its_surprisal() -> None:
    longest = 0
    for text, surprisal in generate_stories(300, seed=5):
        found = probabilities(text)
        assert len(found) == 1, f"{len(found)} derivations of {text!r}"
        assert surprisal == pytest.approx(-math.log(found[0]), rel=1e-12)
        longest = max(longest, len(text))
    assert longest > 500, "long stories were among them"


def test_the_grammar_reads_what_it_writes_and_nothing_else() -> None:
    for text, surprisal in generate_stories(300, seed=6):
        assert stories.GRAMMAR.surprisal(text) == pytest.approx(surprisal, rel=1e-12)
        words = text.split(" ")
        for wrong in (text[:-1], "x" + text, text + text, " ".join([*words[1:], words[0]])):
            found = probabilities(wrong)
            expected = -math.log(found[0]) if found else math.inf
            assert stories.GRAMMAR.surprisal(wrong) == pytest.approx(expected)
    text, _ = next(generate_stories(1, seed=0))
    hero = next(name for name in stories._WORDS["name"].split("|") if name in text)
    assert stories.GRAMMAR.surprisal(text.replace(hero, "Nobody")) == math.inf
    assert stories.GRAMMAR.surprisal("") == math.inf


def test_without_memory_names_are_free_and_nothing_else_is() -> None:
    free = stories.GRAMMAR.without_memory()
    for text, surprisal in generate_stories(100, seed=7):
        assert surprisal < free.surprisal(text) < math.inf
    mixed = (
        "Near the hill lived Lily, a shy fox. Tom wanted a red kite, and so did Sam. Mia sat down. "
    )
    mixed += "Since that day Ben and Ida are friends.\n"
    assert free.surprisal(mixed) < math.inf == stories.GRAMMAR.surprisal(mixed)
    assert free.surprisal(mixed.replace("Lily", "Greta")) == math.inf  # a friend, but no hero
    assert free.entropy()[1] == pytest.approx(entropy_per_story()[1], rel=0.01)


def test_the_parser_of_this_test_does_reject_and_does_see_ambiguity() -> None:
    text, _ = next(generate_stories(1, seed=0))
    assert probabilities(text[:-1]) == [] and probabilities("x" + text) == []
    assert probabilities(text.replace(text.split()[-1], "wrong.")) == []
    RULES["twice"] = [(Fraction(1, 2), "{weather}"), (Fraction(1, 2), "{weather}")]
    try:
        assert len(list(PARSER.expansions("twice", "", "warm", 0, {}))) == 2
    finally:
        del RULES["twice"]


def expected(rule: str) -> tuple[float, float]:
    """(nats, bytes) of a rule by substitution: `events` is the only rule that calls itself."""
    if rule in WORDS:
        nats = -sum(float(p) * math.log(p) for p, _ in zipf(rule))
        return nats, float(sum(p * len(word.encode()) for p, word in zipf(rule)))
    if rule == "events":
        # A geometric number of events with mean 1 / 0.35, a space after each and one between.
        stop = 0.35
        count = 1 / stop
        choice = -(stop * math.log(stop) + (1 - stop) * math.log(1 - stop))
        nats, length = expected("event")
        return count * (nats + choice), count * (length + 1)
    nats, length = 0.0, 0.0
    for p, template in RULES[rule]:
        nats -= float(p) * math.log(p)
        for part in re.split(r"(\{[^}]*\})", template):
            if not part.startswith("{"):
                length += float(p) * len(part.encode())
            elif part == "{they=hero}":
                male = float(sum(q for q, word in zipf("name") if word in MALE))
                length += float(p) * (3 - male)
            elif "=" in part:
                variable = part.strip("{}=")
                length += float(p) * expected("name" if variable == "hero" else variable)[1]
            else:
                more = expected(part.strip("{}").split(":")[0])
                nats, length = nats + float(p) * more[0], length + float(p) * more[1]
    return nats, length


def test_the_entropy_is_the_one_calculated_by_substitution() -> None:
    assert entropy_per_story() == pytest.approx(expected("story"), rel=1e-12)


def test_the_average_of_many_stories_is_the_entropy_within_its_standard_error() -> None:
    sample = list(generate_stories(20_000, seed=1))
    for exact, values in zip(
        entropy_per_story(),
        ([s for _, s in sample], [float(len(text.encode())) for text, _ in sample]),
        strict=True,
    ):
        mean = sum(values) / len(values)
        deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
        assert abs(mean - exact) < 4 * deviation / math.sqrt(len(values))


def test_stories_depend_on_the_seed_alone() -> None:
    assert list(generate_stories(50, seed=1)) == list(generate_stories(50, seed=1))
    assert list(generate_stories(50, seed=1))[:20] == list(generate_stories(20, seed=1))
    assert next(generate_stories(1, seed=1)) != next(generate_stories(1, seed=2))
    assert list(generate_stories(0, seed=1)) == []


def test_stories_are_ascii_end_with_a_line_and_leave_no_field_unfilled() -> None:
    for text, surprisal in generate_stories(200, seed=2):
        assert text.isascii() and text.endswith(".\n") and text.count("\n") == 1
        assert "{" not in text and "  " not in text and surprisal > 0
