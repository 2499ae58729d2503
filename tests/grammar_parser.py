"""A parser of made-up texts that shares no code with the grammar that writes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction

Derivation = tuple[int, Fraction, dict[str, str]]  # end of the text read, probability, memory


class Parser:
    """`forms` maps the name of a form to the function from a remembered word to it."""

    def __init__(
        self,
        rules: Mapping[str, list[tuple[float, str]]],
        words: Mapping[str, str],
        forms: Mapping[str, Callable[[str], str]],
    ) -> None:
        self.rules = {
            rule: [(Fraction(str(p)), template) for p, template in rows]
            for rule, rows in rules.items()
        }
        self.words = {rule: text.split("|") for rule, text in words.items()}
        self.forms = forms

    def zipf(self, rule: str) -> list[tuple[Fraction, str]]:
        words = self.words[rule]
        total = sum(Fraction(1, rank) for rank in range(1, len(words) + 1))
        return [(Fraction(1, rank) / total, word) for rank, word in enumerate(words, start=1)]

    def probabilities(self, start: str, text: str) -> list[Fraction]:
        """The probability of each derivation of the whole text."""
        found = self.expansions(start, "", text, 0, {})
        return [probability for end, probability, _ in found if end == len(text)]

    def surprisal(self, start: str, text: str) -> float:
        """-ln of the probability of `text`, which must have one derivation."""
        (probability,) = self.probabilities(start, text)
        return -math.log(probability)

    def derivations(
        self, template: str, text: str, at: int, memory: dict[str, str]
    ) -> Iterator[Derivation]:
        """Every way in which `template` writes a part of `text` that begins at `at`."""
        if not template:
            yield at, Fraction(1), memory
            return
        if template[0] != "{":
            literal = template.split("{", 1)[0]
            if text.startswith(literal, at):
                rest = template[len(literal) :]
                yield from self.derivations(rest, text, at + len(literal), memory)
            return
        field, rest = template[1:].split("}", 1)
        heads: Iterator[Derivation]
        if "=" in field:
            form, _, variable = field.partition("=")
            word = self.forms[form](memory[variable]) if form else memory[variable]
            heads = iter(
                [(at + len(word), Fraction(1), memory)] if text.startswith(word, at) else []
            )
        else:
            rule, _, variable = field.partition(":")
            heads = self.expansions(rule, variable, text, at, memory)
        for middle, probability, known in heads:
            for end, more, last in self.derivations(rest, text, middle, known):
                yield end, probability * more, last

    def expansions(
        self, rule: str, variable: str, text: str, at: int, memory: dict[str, str]
    ) -> Iterator[Derivation]:
        if rule in self.words:
            for probability, word in self.zipf(rule):
                if text.startswith(word, at):
                    yield at + len(word), probability, memory | (
                        {variable: word} if variable else {}
                    )
            return
        for probability, template in self.rules[rule]:
            for end, rest, known in self.derivations(template, text, at, memory):
                yield end, probability * rest, known
