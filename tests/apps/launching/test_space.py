"""What `key=value` arguments sweep."""

from __future__ import annotations

import pytest

from apps.launching.space import grid, parse_space
from common.errors import ConfigError


def values_of(argument: str) -> tuple[str, ...]:
    (parameter,) = parse_space([argument])
    return parameter.values


@pytest.mark.parametrize(
    ("argument", "values"),
    [
        ("optimizer.lr=1e-3,3e-4", ("1e-3", "3e-4")),
        ("optimizer.lr=1e-3, 3e-4", ("1e-3", "3e-4")),
        ("seed=range(3)", ("0", "1", "2")),
        ("seed=range(2,5)", ("2", "3", "4")),
        ("seed=range(6, 0, -3)", ("6", "3")),
        ("model.num_layers=choice(2,4)", ("2", "4")),
        ("betas=choice([0.9,0.95],[0.9,0.99])", ("[0.9,0.95]", "[0.9,0.99]")),
        ("prompts=choice(['a,b'],[\"c)\"])", ("['a,b']", '["c)"]')),
        ("mixed=choice(1)", ("1",)),
        # A comma after a backslash splits nothing.
        (r"path=a\,b.txt", ("a,b.txt",)),
        (r"path=a\,b.txt,c.txt", ("a,b.txt", "c.txt")),
        (r"path=choice(a\,b(1).txt, c\d.txt)", ("a,b(1).txt", r"c\d.txt")),
        (
            "model=choice({hidden_size: 64, num_heads: 2}, {hidden_size: 128, num_heads: 4})",
            ("{hidden_size: 64, num_heads: 2}", "{hidden_size: 128, num_heads: 4}"),
        ),
        # Kept whole: brackets, braces, quotes, interpolations, and what has no comma.
        ("betas=[0.9,0.95]", ("[0.9,0.95]",)),
        ("optimizer={lr: 1, eps: 2}", ("{lr: 1, eps: 2}",)),
        ("prompt='a, b'", ("'a, b'",)),
        ('prompt="a, b"', ('"a, b"',)),
        ("lr=${optimizer.lr}", ("${optimizer.lr}",)),
        ("text=f(x, y)", ("f(x, y)",)),
        ("formula=a=b", ("a=b",)),
        ("empty=", ("",)),
    ],
)
def test_values_of_an_argument(argument: str, values: tuple[str, ...]) -> None:
    assert values_of(argument) == values


def test_distributions() -> None:
    lr, dropout = parse_space(["lr=loguniform(1e-4,1e-2)", "dropout=uniform(0, 0.5)"])
    assert (lr.bounds, lr.log, lr.swept) == ((1e-4, 1e-2), True, True)
    assert (dropout.bounds, dropout.log) == ((0.0, 0.5), False)
    assert lr.example == "0.0001"


@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        ("lr", "expected key.path=value"),
        ("=3", "expected key.path=value"),
        ("--lr=3", "expected key.path=value"),
        ("lr=1,,2", "empty"),
        ("lr=1,2,", "empty"),
        ("seed=1,2,1", "duplicate value"),
        ("seed=range()", "invalid literal"),
        ("seed=range(1,2,3,4)", "expected range"),
        ("seed=range(1.5)", "1.5"),
        ("seed=range(3,3)", "0 numbers"),
        ("seed=range(1,9,0)", "zero"),
        ("seed=range(1000000)", "1,000,000"),
        ("lr=loguniform(0,1)", "more than 0"),
        ("lr=uniform(2,1)", "less than high"),
        ("lr=uniform(0,inf)", "less than high"),
        ("lr=uniform(0,nan)", "less than high"),
        ("lr=uniform(1)", "expected uniform(low,high)"),
        ("lr=loguniform(a,b)", "could not convert"),
        ("lr=choice([1,2)", "unclosed"),
    ],
)
def test_a_mistake_is_told_with_its_argument(argument: str, reason: str) -> None:
    with pytest.raises(ConfigError) as error:
        grid(parse_space([argument]))
    assert reason in error.value.message and argument in error.value.message


def test_a_misspelt_function_is_not_taken_for_a_text() -> None:
    with pytest.raises(ConfigError) as error:
        parse_space(["lr=loguniforn(1e-4,1e-2)"])
    assert error.value.hint == "did you mean 'loguniform'?"


def test_a_key_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="'seed' is given twice"):
        parse_space(["seed=1", "lr=2", "seed=3"])


def test_the_grid_is_every_combination_of_what_is_swept() -> None:
    combinations = grid(parse_space(["lr=1,2", "steps=10", "seed=range(2)"]))
    assert combinations == [
        {"lr": "1", "seed": "0"},
        {"lr": "1", "seed": "1"},
        {"lr": "2", "seed": "0"},
        {"lr": "2", "seed": "1"},
    ]
    assert grid(parse_space(["steps=10"])) == [{}]


def test_a_grid_over_a_distribution_and_a_huge_one_are_refused() -> None:
    with pytest.raises(ConfigError, match="list of values") as error:
        grid(parse_space(["lr=loguniform(1e-4,1e-2)"]))
    assert "--optuna" in error.value.hint
    with pytest.raises(ConfigError, match="1,000,000"):
        grid(parse_space(["a=range(1000)", "b=range(1000)"]))
