"""Texts from a small probabilistic grammar with exactly known entropy.

Every text has a unique derivation (the alternatives of a rule are distinguishable while reading),
so its probability is the product of the probabilities of its choices: its surprisal is exact, and
so is the entropy of the source. No model can reach a lower expected loss, and a run can print its
distance from that floor.

A template is text with fields: `{animal}` expands a rule, `{name:hero}` also stores the result as
`hero`, `{=hero}` repeats it, `{they=hero}` writes its form `they`. The words of a list have
probabilities proportional to 1/rank (Zipf); those of a rule are given.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

_FIELD = re.compile(r"\{(\w*)([:=]?)(\w*)\}")

_Memory = dict[str, str]  # the stored result of each variable


@dataclass(frozen=True)
class _Field:
    rule: str = ""  # rule to expand, unless a variable is recalled
    remember: str = ""
    recall: str = ""
    form: str = ""  # form of the recalled variable


@dataclass(frozen=True)
class _Alternative:
    probability: float
    parts: tuple[str | _Field, ...]


@dataclass(frozen=True)
class Form:
    """Another form of stored words: `of[word]`, or `otherwise` for unlisted words."""

    of: Mapping[str, str]
    otherwise: str

    def __call__(self, word: str) -> str:
        return self.of.get(word, self.otherwise)


class Grammar:
    """Rules of templates and lists of words; `start` is the rule of a whole text."""

    def __init__(
        self,
        start: str,
        rules: Mapping[str, Sequence[tuple[float, str]]],  # rule -> (probability, template)
        words: Mapping[str, str],  # rule -> "most frequent|...|rarest"
        forms: Mapping[str, Form],
    ) -> None:
        self.start = start
        self.forms = forms
        self.rules = {rule: [_parse(p, text) for p, text in rows] for rule, rows in rules.items()}
        self.rules |= {rule: _zipf(text.split("|")) for rule, text in words.items()}
        self._remembered = {  # variable -> its list of words
            part.remember: part.rule
            for alternatives in self.rules.values()
            for alternative in alternatives
            for part in alternative.parts
            if isinstance(part, _Field) and part.remember
        }

    def generate(self, count: int, seed: int) -> Iterator[tuple[str, float]]:
        """Yield `count` pairs (text, surprisal in nats), with surprisal -ln P(text)."""
        rng = random.Random(seed)
        for _ in range(count):
            pieces: list[str] = []
            surprisal = self._write(self.start, rng, pieces, {})
            yield "".join(pieces), surprisal

    def _write(self, rule: str, rng: random.Random, pieces: list[str], memory: _Memory) -> float:
        """Append one expansion of `rule` to `pieces`; return the surprisal of its choices in nats."""
        alternatives = self.rules[rule]
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
                pieces.append(self._recalled(part, memory))
            else:
                surprisal += self._write(part.rule, rng, pieces, memory)
                if part.remember:
                    memory[part.remember] = pieces[-1]
        return surprisal

    def without_memory(self) -> Grammar:
        """The grammar that repeats nothing: in place of a stored word it writes any word of the same list."""
        free = Grammar(self.start, {}, {}, {})
        for rule, alternatives in self.rules.items():
            free.rules[rule] = [
                _Alternative(
                    each.probability, tuple(self._forget(part, free) for part in each.parts)
                )
                for each in alternatives
            ]
        return free

    def _forget(self, part: str | _Field, free: Grammar) -> str | _Field:
        if isinstance(part, str) or not part.recall:
            return part if isinstance(part, str) else _Field(rule=part.rule)
        rule = self._remembered[part.recall]
        if part.form:
            words = (str(word.parts[0]) for word in self.rules[rule])
            forms = dict.fromkeys(self.forms[part.form](word) for word in words)
            rule = f"{part.form}={part.recall}"
            free.rules[rule] = _zipf([*forms])
        return _Field(rule=rule)

    def surprisal(self, text: str) -> float:
        """Return -ln P(text) in nats; infinity for a text that the grammar does not write."""
        for end, surprisal, _ in self._read(self.start, text, 0, {}):
            if end == len(text):
                return surprisal
        return math.inf

    def _read(
        self, rule: str, text: str, start: int, memory: _Memory
    ) -> Iterator[tuple[int, float, _Memory]]:
        """Yield (end, surprisal in nats, memory) of every expansion of `rule` that `text` has at `start`."""
        for alternative in self.rules[rule]:
            surprisal = -math.log(alternative.probability)
            yield from self._read_parts(alternative.parts, text, start, surprisal, memory)

    def _read_parts(
        self,
        parts: tuple[str | _Field, ...],
        text: str,
        start: int,
        surprisal: float,
        memory: _Memory,
    ) -> Iterator[tuple[int, float, _Memory]]:
        if not parts:
            yield start, surprisal, memory
            return
        part, rest = parts[0], parts[1:]
        if isinstance(part, str) or part.recall:
            expected = part if isinstance(part, str) else self._recalled(part, memory)
            if text.startswith(expected, start):
                yield from self._read_parts(rest, text, start + len(expected), surprisal, memory)
            return
        for end, nats, known in self._read(part.rule, text, start, memory):
            if part.remember:
                known = {**known, part.remember: text[start:end]}
            yield from self._read_parts(rest, text, end, surprisal + nats, known)

    def _recalled(self, part: _Field, memory: _Memory) -> str:
        word = memory[part.recall]
        return self.forms[part.form](word) if part.form else word

    def entropy(self) -> tuple[float, float]:
        """Return the exact (expected surprisal in nats, expected length in bytes) of a text.

        Both solve x = c + M x, with c the rule's own choices (or letters) and M[r, s] the expected
        number of direct expansions of rule s by rule r. Their ratio is the entropy rate of the
        source by the renewal-reward theorem.
        """
        index = {rule: i for i, rule in enumerate(self.rules)}
        calls = np.zeros((len(index), len(index)))
        nats, length = np.zeros(len(index)), np.zeros(len(index))
        for rule, alternatives in self.rules.items():
            for alternative in alternatives:
                p = alternative.probability
                nats[index[rule]] -= p * math.log(p)
                for part in alternative.parts:
                    if isinstance(part, str):
                        length[index[rule]] += p * len(part.encode())
                    elif part.recall:
                        length[index[rule]] += p * self._expected_recall_bytes(part)
                    else:
                        calls[index[rule], index[part.rule]] += p
        values = np.stack([nats, length], axis=1)
        expected = np.linalg.solve(np.eye(len(index)) - calls, values)
        start = index[self.start]
        return float(expected[start, 0]), float(expected[start, 1])

    def _expected_recall_bytes(self, part: _Field) -> float:
        words = self.rules[self._remembered[part.recall]]
        texts = [str(word.parts[0]) for word in words]
        if part.form:
            texts = [self.forms[part.form](text) for text in texts]
        return sum(w.probability * len(t.encode()) for w, t in zip(words, texts, strict=True))


def _parse(probability: float, template: str) -> _Alternative:
    parts: list[str | _Field] = []
    position = 0
    for match in _FIELD.finditer(template):
        parts.append(template[position : match.start()])
        name, kind, variable = match.groups()
        parts.append(
            _Field(recall=variable, form=name)
            if kind == "="
            else _Field(rule=name, remember=variable)
        )
        position = match.end()
    return _Alternative(probability, tuple(p for p in (*parts, template[position:]) if p != ""))


def _zipf(words: Sequence[str]) -> list[_Alternative]:
    total = sum(1 / (rank + 1) for rank in range(len(words)))
    return [_Alternative(1 / (rank + 1) / total, (word,)) for rank, word in enumerate(words)]
