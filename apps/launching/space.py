"""Parse swept `key.path=value` arguments: lists, ranges and distributions.

optimizer.lr=1e-3,3e-4                  two values
seed=range(5)                           0, 1, 2, 3, 4 (as Python's: a, b, step)
optimizer.betas=choice([0.9,0.95],[0.9,0.99])   values that contain commas
optimizer.lr=loguniform(1e-4,1e-2)      a distribution, for --optuna; also uniform(a,b)
optimizer.betas=[0.9,0.95]              one value: brackets and quotes are not split
data.path=a\\,b.txt,c.txt                two values: a backslash keeps the comma, also inside choice(...)
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from common.errors import ConfigError

MOST_TRIALS = 10_000
_DISTRIBUTIONS = ("uniform", "loguniform")
_FUNCTIONS = ("range", "choice", *_DISTRIBUTIONS)
_WHOLE = re.compile(r"""[][(){}"']""")
_OPENING, _CLOSING = "([{", ")]}"


@dataclass(frozen=True)
class Parameter:
    """One argument, with `values`, or `bounds` for a distribution."""

    key: str
    text: str  # right of the `=`, as typed
    values: tuple[str, ...] = ()
    numbers: range | None = None  # if `values` are consecutive integers
    bounds: tuple[float, float] | None = None
    log: bool = False

    @property
    def swept(self) -> bool:
        return self.bounds is not None or len(self.values) > 1

    @property
    def example(self) -> str:
        """An example value, the same at every call."""
        return repr(self.bounds[0]) if self.bounds else self.values[0]


def parse_space(arguments: Sequence[str]) -> list[Parameter]:
    """Parse the parameters of a command line. Raises ConfigError for invalid ones."""
    parameters: dict[str, Parameter] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not key or key.startswith("-"):
            raise ConfigError(f"argument '{argument}': expected key.path=value")
        if key in parameters:
            raise ConfigError(f"'{key}' is given twice", f"as a list: {key}=A,B")
        parameters[key] = _parse(key, text)
    return list(parameters.values())


def grid(parameters: Sequence[Parameter]) -> list[dict[str, str]]:
    """[{key: value}] for every combination, the last parameter changing fastest.

    Raises ConfigError for distributions, which have no list of values, and for too many
    combinations.
    """
    swept = [parameter for parameter in parameters if parameter.swept]
    for parameter in swept:
        if parameter.bounds:
            raise ConfigError(
                f"argument '{parameter.key}={parameter.text}': a grid needs a list of values",
                "add --optuna N to draw N trials from it",
            )
    count = math.prod(len(parameter.values) for parameter in swept)
    if count > MOST_TRIALS:
        raise ConfigError(f"{count:,} combinations are too many", "sweep less, or use --optuna N")
    keys = [parameter.key for parameter in swept]
    combinations = product(*(parameter.values for parameter in swept))
    return [dict(zip(keys, values, strict=True)) for values in combinations]


def _parse(key: str, text: str) -> Parameter:
    call = re.fullmatch(r"([A-Za-z_]+)\((.*)\)", text)
    if call and call[1] in _FUNCTIONS:
        parse = {"range": _parse_range, "choice": _parse_choice}.get(call[1], _parse_distribution)
        try:
            return parse(key, text, call[1], _split(call[2]))
        except ValueError as error:
            raise ConfigError(f"argument '{key}={text}': {error}") from error
    if call:
        _refuse_typing_error(key, text, call[1])
    if "," not in text or _WHOLE.search(text):
        return Parameter(key, text, (text,))
    return _parse_choice(key, text, "", _split(text))


def _refuse_typing_error(key: str, text: str, name: str) -> None:
    from difflib import get_close_matches

    if near := get_close_matches(name.lower(), _FUNCTIONS, n=1, cutoff=0.75):
        raise ConfigError(f"argument '{key}={text}': no '{name}'", f"did you mean '{near[0]}'?")


def _parse_choice(key: str, text: str, name: str, items: list[str]) -> Parameter:
    values = tuple(item.strip() for item in items)
    if not all(values):
        raise ConfigError(f"argument '{key}={text}': a value is empty")
    if len(set(values)) < len(values):
        raise ConfigError(f"argument '{key}={text}': duplicate value")
    return Parameter(key, text, values)


def _parse_range(key: str, text: str, name: str, items: list[str]) -> Parameter:
    if not 1 <= len(items) <= 3:
        raise ValueError("expected range(b), range(a,b) or range(a,b,step)")
    numbers = range(*map(int, items))
    if not 0 < len(numbers) <= MOST_TRIALS:
        raise ValueError(f"it has {len(numbers):,} numbers")
    return Parameter(key, text, tuple(map(str, numbers)), numbers)


def _parse_distribution(key: str, text: str, name: str, items: list[str]) -> Parameter:
    if len(items) != 2:
        raise ValueError(f"expected {name}(low,high)")
    low, high = map(float, items)
    log = name == "loguniform"
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError("low must be less than high")
    if log and low <= 0:
        raise ValueError("low must be more than 0")
    return Parameter(key, text, bounds=(low, high), log=log)


def _split(text: str) -> list[str]:
    """Split at commas outside of brackets and quotes and not after a backslash."""
    items, depth, quote = [""], 0, ""
    for character in text:
        if character == "," and depth == 0 and not quote and items[-1].endswith("\\"):
            items[-1] = items[-1][:-1] + ","
            continue
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        else:
            depth += (character in _OPENING) - (character in _CLOSING)
        if character == "," and depth == 0 and not quote:
            items.append("")
        else:
            items[-1] += character
    if depth or quote:
        raise ValueError("unclosed bracket or quote")
    return items
