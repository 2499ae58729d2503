"""Short stories from a small probabilistic grammar whose entropy is known exactly.

Every text has one derivation only (the alternatives of a rule can be told apart while reading), so
the probability of a story is the product of the probabilities of the choices made in writing it:
its surprisal is exact, and so is the entropy of the whole source. No model can reach a lower loss
on average, and a run can print how far above that floor it is.

A template is text with fields: `{animal}` writes a new choice of a rule, `{name:hero}` writes one and
remembers it as `hero`, `{=hero}` writes it again, `{they=hero}` writes its pronoun. The alternatives
of a word list have probabilities proportional to 1/rank (Zipf), those of a rule are given.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

_WORDS = {
    "animal": "fox|rabbit|bear|mouse|owl|duck|hedgehog|turtle",
    "trait": "little|brave|shy|curious|sleepy|clever|kind|grumpy",
    "name": "Lily|Tom|Mia|Ben|Anna|Max|Rosa|Finn|Ella|Otto",
    "friend": "Bella|Jack|Nora|Sam|Ida|Paul|Greta|Hugo",
    "place": "forest|river|garden|hill|lake|meadow|old mill|beach",
    "weather": "sunny|rainy|windy|cold|foggy|warm",
    "color": "red|blue|golden|green|silver|purple",
    "thing": "ball|kite|lantern|boat|drum|shell|key|map|bell|hat",
    "spot": "under a stone|behind a tree|inside a hollow log|near the bridge|up on a branch",
    "mood": "happy|sad|surprised|tired|proud|afraid",
    "food": "apples|honey|bread|berries|soup|carrots",
    "said": "said|asked|whispered|shouted|laughed",
    "action": "danced|sang|waited|looked around|jumped up and down|sat down",
}
_PRONOUNS = {"Tom": "he", "Ben": "he", "Max": "he", "Finn": "he", "Otto": "he"}  # the others: she
_RULES = {
    "story": [(1.0, "{opening} {wish} {events}{ending}\n")],
    "opening": [
        (0.5, "Once upon a time there was a {trait} {animal} named {name:hero}."),
        (0.3, "One {weather} day {name:hero} the {animal} went to the {place}."),
        (0.2, "Near the {place} lived {name:hero}, a {trait} {animal}."),
    ],
    "wish": [
        (0.6, "{=hero} wanted a {color:color} {thing:thing}, and so did {friend:friend}."),
        (0.4, "Then {they=hero} lost a {color:color} {thing:thing} and told {friend:friend}."),
    ],
    "events": [(0.35, "{event} "), (0.65, "{event} {events}")],
    "event": [
        (0.22, "{=hero} {action}."),
        (0.18, "{=friend} {action} and was {mood}."),
        (0.16, '"Where is the {=thing}?" {said} {=hero}.'),
        (0.14, "They looked {spot}, but the {=color} {=thing} was not there."),
        (0.12, "So {they=hero} walked to the {place}."),
        (0.10, "Now it was {weather}, and {they=hero} felt {mood}."),
        (0.08, "Both ate {food} together."),
    ],
    "ending": [
        (0.5, "At last they found the {=color} {=thing} {spot}, and {=hero} was {mood}."),
        (0.3, "In the end {=friend} gave {=hero} the {=thing}."),
        (0.2, "Since that day {=hero} and {=friend} are friends."),
    ],
}
_FIELD = re.compile(r"\{(\w*)([:=]?)(\w*)\}")


@dataclass(frozen=True)
class _Field:
    rule: str  # the rule to choose from; "" or "they" when a remembered word is written
    remember: str = ""
    recall: str = ""


@dataclass(frozen=True)
class _Alternative:
    probability: float
    parts: tuple[str | _Field, ...]


def _parse(probability: float, template: str) -> _Alternative:
    parts: list[str | _Field] = []
    position = 0
    for match in _FIELD.finditer(template):
        parts.append(template[position : match.start()])
        rule, kind, variable = match.groups()
        parts.append(
            _Field(rule, recall=variable) if kind == "=" else _Field(rule, remember=variable)
        )
        position = match.end()
    return _Alternative(probability, tuple(p for p in (*parts, template[position:]) if p != ""))


def _build_grammar() -> dict[str, list[_Alternative]]:
    grammar = {rule: [_parse(p, text) for p, text in rows] for rule, rows in _RULES.items()}
    for rule, words in _WORDS.items():
        texts = words.split("|")
        total = sum(1 / (rank + 1) for rank in range(len(texts)))
        grammar[rule] = [
            _Alternative(1 / (rank + 1) / total, (text,)) for rank, text in enumerate(texts)
        ]
    return grammar


GRAMMAR = _build_grammar()


def generate_stories(count: int, seed: int) -> Iterator[tuple[str, float]]:
    """Yield `count` pairs (story, surprisal in nats): -ln of the probability of exactly this text."""
    rng = random.Random(seed)
    for _ in range(count):
        pieces: list[str] = []
        surprisal = _write("story", rng, pieces, {})
        yield "".join(pieces), surprisal


def _write(rule: str, rng: random.Random, pieces: list[str], memory: dict[str, str]) -> float:
    """Append one expansion of `rule` to `pieces`; return the surprisal of its choices in nats."""
    alternatives = GRAMMAR[rule]
    chosen = alternatives[-1]
    threshold = rng.random()
    for alternative in alternatives:
        threshold -= alternative.probability
        if threshold < 0:
            chosen = alternative
            break
    surprisal = -math.log(chosen.probability)
    for part in chosen.parts:
        if isinstance(part, str):
            pieces.append(part)
        elif part.recall:
            word = memory[part.recall]
            pieces.append(_PRONOUNS.get(word, "she") if part.rule == "they" else word)
        else:
            surprisal += _write(part.rule, rng, pieces, memory)
            if part.remember:
                memory[part.remember] = pieces[-1]
    return surprisal


def entropy_per_story() -> tuple[float, float]:
    """(expected surprisal in nats, expected length in bytes) of a story, exactly.

    Both are linear in the expansions that a rule makes, x = c + M x, with c the rule's own choices
    (or letters) and M[r, s] the expected number of times that rule r writes rule s directly.
    Their ratio is the entropy rate of the source by the renewal-reward theorem.
    """
    rules = list(GRAMMAR)
    index = {rule: i for i, rule in enumerate(rules)}
    calls = np.zeros((len(rules), len(rules)))
    nats, length = np.zeros(len(rules)), np.zeros(len(rules))
    for rule, alternatives in GRAMMAR.items():
        for alternative in alternatives:
            p = alternative.probability
            nats[index[rule]] -= p * math.log(p)
            for part in alternative.parts:
                if isinstance(part, str):
                    length[index[rule]] += p * len(part.encode())
                elif part.recall:
                    length[index[rule]] += p * _expected_recall_bytes(part)
                else:
                    calls[index[rule], index[part.rule]] += p
    expected = np.linalg.solve(np.eye(len(rules)) - calls, np.stack([nats, length], axis=1))
    return float(expected[index["story"], 0]), float(expected[index["story"], 1])


def _expected_recall_bytes(part: _Field) -> float:
    words = GRAMMAR["name" if part.recall == "hero" else part.recall]
    texts = [str(word.parts[0]) for word in words]
    if part.rule == "they":
        texts = [_PRONOUNS.get(text, "she") for text in texts]
    return sum(w.probability * len(t.encode()) for w, t in zip(words, texts, strict=True))
