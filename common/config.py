"""Configuration: a YAML or TOML file, `extends`, `key.path=value` overrides -> one frozen object.

Later wins: defaults in code < the files named by `extends`, in order < the file < the command line.
config_files.py reads, interpolation.py resolves `${optimizer.lr}`, Pydantic validates. Errors
become a ConfigError with one line per problem: the key, its file or argument, the fix.

YAML and TOML are equivalent and can extend each other. TOML has no null: write "${oc.decode:null}".
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import ErrorDetails, PydanticCustomError
from pydantic_core.core_schema import ValidationInfo

from common.config_files import (
    Sources,
    find,
    merge,
    parse_value,
    read_config_file,
    set_source,
    to_yaml,
)
from common.errors import ConfigError, ResearchError, did_you_mean
from common.interpolation import InterpolationError, escape, interpolate
from common.utils.arguments import is_utf8


class Config(BaseModel):
    """Base class of configuration schemas: frozen, without unknown keys, no numbers from booleans."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, coerce_numbers_to_str=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _booleans_and_numbers_apart(cls, value: object, info: ValidationInfo) -> object:
        annotation = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, str) and any(kind is True for kind in _flat_types(annotation)):
            # `compile: on` as Pydantic parses it in a bool field; in YAML 1.2 it is text.
            return _BOOLEAN_WORDS.get(value.lower(), value)
        # Pydantic would parse `max_steps: true` as 1.
        items = value if isinstance(value, list) else [value]
        for item in value.values() if isinstance(value, dict) else items:
            if isinstance(item, bool) and {int, float} & set(_flat_types(annotation)):
                shown = str(item).lower()
                raise PydanticCustomError(
                    "number", "expected a number, got {value}", {"value": shown}
                )
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _text_is_utf8(cls, value: object) -> object:
        # A shell passes any bytes; files, Parquet and tokenizers require text.
        items = [*value, *value.values()] if isinstance(value, dict) else [value]
        for item in value if isinstance(value, list | tuple) else items:
            if isinstance(item, str | Path) and not is_utf8(str(item)):
                raise ValueError(f"{item!a} is not UTF-8")
        return value


_BOOLEAN_WORDS = {"yes": True, "on": True, "no": False, "off": False}


def _flat_types(annotation: Any) -> list[Any]:
    """`tuple[float, float] | None` -> [..., tuple[float, float], float, float, NoneType]"""
    return [annotation, *(t for argument in get_args(annotation) for t in _flat_types(argument))]


C = TypeVar("C", bound=Config)
Seed = Annotated[int, Field(ge=0, lt=2**63)]  # valid for PyTorch and an SQL BIGINT


def load_config(
    path: str | Path,
    schema: type[C],
    overrides: Sequence[str] = (),
    search: Sequence[Path] = (),
) -> C:
    """Read `path`, apply `overrides` (`key.path=value`) and return a validated `schema`.

    `path` is resolved against the current folder, then each folder in `search`.
    Raises ConfigError for a missing or unreadable file, a cycle of `extends`, a malformed override,
    an unknown key, a wrong type or value, and an interpolation without target.
    """
    return ConfigFile(path, search).load(schema, overrides)


class ConfigFile:
    """A file and those it extends, read once, for any number of sets of overrides."""

    def __init__(self, path: str | Path, search: Sequence[Path] = ()) -> None:
        """Read the files. Raises ConfigError like `load_config`."""
        self._values, self._sources = read_config_file(find(Path(path), search))

    def load(self, schema: type[C], overrides: Sequence[str] = ()) -> C:
        """Return a configuration like `load_config`."""
        return _override(self._values, overrides, schema, dict(self._sources))


def _override(
    values: dict[str, Any], overrides: Sequence[str], schema: type[C], sources: Sources
) -> C:
    for argument in overrides:
        values = _apply_override(values, argument, schema, sources)
    try:
        values = interpolate(values)
    except InterpolationError as error:
        origin = _origin(error.key, sources)
        raise ConfigError(f"{origin}{error.key}: {error}", error.hint) from error
    return _validate(schema, values, sources)


def change_config(config: C, overrides: Sequence[str]) -> C:
    """Apply `overrides` to `config`. Raises ConfigError like `load_config`."""
    return _override(escape(config.model_dump(mode="json")), overrides, type(config), {})


def make_config(schema: type[C], values: dict[str, Any]) -> C:
    """Validate `schema` from values without a file. Raises ConfigError like `load_config`."""
    return _validate(schema, values, {})


def print_configs(load: Callable[[list[str]], Config], lines: Iterable[str]) -> None:
    """Answer each line, a JSON list of overrides, with a line of JSON: the configuration or the error.

    Validates thousands of configurations in one process of the script that knows their schema.
    """
    for line in lines:
        try:
            answer: dict[str, Any] = {"config": load(json.loads(line)).model_dump(mode="json")}
        except ResearchError as error:
            answer = {"error": error.message, "hint": error.hint}
        print(json.dumps(answer))


def dump_config(config: Config) -> str:
    """Format the configuration as YAML that `load_config` reads back to an equal object."""
    return dump_values(config.model_dump(mode="json"))


def dump_values(values: dict[str, Any]) -> str:
    """Format the configuration of a manifest as YAML that `load_config` reads back."""
    return to_yaml(escape(values))


def _apply_override(
    values: dict[str, Any], argument: str, schema: type[Config], sources: Sources
) -> dict[str, Any]:
    """Apply `argument` to `values`, copying changed sections."""
    key, equals, text = argument.partition("=")
    if not equals or not key or key.startswith("-"):
        raise ConfigError(f"argument '{argument}': expected key.path=value")
    set_source(sources, key, f"argument '{argument}'")
    # A text field takes the text as typed: `name=[x`, `name=on`.
    annotation = _annotation(schema, key)
    choices = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
    is_text = str in choices or Path in choices
    try:
        if is_text and not (text == "null" and NoneType in choices):
            value: object = text
        else:
            value = parse_value(text)
        replaced: dict[str, Any] = _replaced(values, key.split("."), value)
        return replaced
    except ValueError as error:
        raise ConfigError(f"argument '{argument}': {error}") from error


def _replaced(node: Any, path: list[str], value: object) -> Any:
    """Set `value` at `path` of `node`; sections are merged, list elements have their indices as keys."""
    if not path:
        return merge(node, value) if isinstance(node, dict) and isinstance(value, dict) else value
    first, *rest = path
    if isinstance(node, list):
        if not first.isdecimal() or int(first) >= len(node):
            raise ValueError(f"'{first}' is not an element of a list of {len(node)}")
        items = list(node)
        items[int(first)] = _replaced(items[int(first)], rest, value)
        return items
    if node is not None and not isinstance(node, dict):
        raise ValueError(f"'{first}' is set in a value that is not a section: {node}")
    node = node or {}
    return node | {first: _replaced(node.get(first), rest, value)}


def _nested_schema(annotation: Any) -> type[Config] | None:
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, Config):
            return kind
    return None


def _annotation(schema: type[Config], key: str) -> Any:
    """The type annotation of a dotted key, or None for an unknown key."""
    first, _, rest = key.partition(".")
    field = schema.model_fields.get(first)
    if field is None or not rest:
        return field.annotation if field else None
    nested = _nested_schema(field.annotation)
    return _annotation(nested, rest) if nested else None


def _validate(schema: type[C], values: object, sources: Sources) -> C:
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        lines = [_explain(schema, details, sources) for details in error.errors()]
        raise ConfigError("\n  ".join(lines)) from error


def _explain(schema: type[Config], details: ErrorDetails, sources: Sources) -> str:
    names = [str(part) for part in details["loc"]]
    key = ".".join(names)
    origin = _origin(key, sources)
    if details["type"] == "extra_forbidden":
        parent = (
            schema
            if len(names) == 1
            else _nested_schema(_annotation(schema, key.rpartition(".")[0]))
        )
        valid = did_you_mean(names[-1], list(parent.model_fields)) if parent else ""
        return f"{origin}unknown key '{key}'; {valid}"
    message = details["msg"].removeprefix("Value error, ")
    message = message.removeprefix("Input should be ").removeprefix("a valid ")
    if details["type"] == "missing":
        return f"{origin}'{key}' is missing"
    if details["type"] in ("value_error", "number"):
        return f"{origin}{key}: {message}" if key else f"{origin}{message}"
    if details["type"] != "literal_error":  # which lists the choices
        message = message.split(", ")[0]
    return f"{origin}{key}: expected {message}, got {details['input']!r}"


def _origin(key: str, sources: Sources) -> str:
    """`file: ` or `argument '...': ` for the source of `key`, or of a key inside or above it."""
    while key:
        inside = [source for k, source in sources.items() if k == key or k.startswith(f"{key}.")]
        if inside:
            return f"{inside[-1]}: "
        key = key.rpartition(".")[0]
    return ""
