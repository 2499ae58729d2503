"""Configuration: a YAML or TOML file, `extends`, `key.path=value` overrides -> one frozen object.

Later wins: defaults in code < the files named by `extends`, in order < the file < the command line.
OmegaConf merges and interpolates (`${optimizer.lr}`), Pydantic checks. A mistake becomes a
ConfigError with one line per problem: the key, the file or argument it came from, the fix.

YAML and TOML say the same, and each can extend the other. TOML has no null: write "${oc.decode:null}".
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import lazy_loader
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator
from pydantic_core import ErrorDetails, PydanticCustomError
from pydantic_core.core_schema import ValidationInfo

from common.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    import omegaconf
    from omegaconf import DictConfig
else:
    omegaconf = lazy_loader.load("omegaconf")  # a quarter second that `--help` need not wait for


class Config(BaseModel):
    """Base of every configuration schema: frozen, unknown keys refused, numbers never from booleans."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, coerce_numbers_to_str=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean_numbers(cls, value: object, info: ValidationInfo) -> object:
        # Pydantic would read `max_steps: true` as 1, and YAML reads `on` and `yes` as true.
        annotation = cls.model_fields[info.field_name or ""].annotation
        items = value if isinstance(value, list) else [value]
        for item in value.values() if isinstance(value, dict) else items:
            if isinstance(item, bool) and {int, float} & set(_flat_types(annotation)):
                shown = str(item).lower()
                raise PydanticCustomError(
                    "number", "expected a number, got {value}", {"value": shown}
                )
        return value


def _flat_types(annotation: Any) -> list[Any]:
    """`tuple[float, float] | None` -> [..., tuple[float, float], float, float, NoneType]"""
    return [annotation, *(t for argument in get_args(annotation) for t in _flat_types(argument))]


C = TypeVar("C", bound=Config)
Sources = dict[str, str]  # dotted key -> the file or argument that set it


def load_config(
    path: str | Path,
    schema: type[C],
    overrides: Sequence[str] = (),
    search: Sequence[Path] = (),
) -> C:
    """Read `path`, apply `overrides` (`key.path=value`) and return a validated `schema`.

    `path` is looked up from the current folder, then from each folder in `search`.
    Raises ConfigError for a missing or unreadable file, a cycle of `extends`, a malformed override,
    an unknown key, a wrong type or value, and an interpolation that leads nowhere.
    """
    sources: Sources = {}
    read = _read_with_extends(_find(Path(path), search), (), sources)
    merged = omegaconf.OmegaConf.create(read)
    for argument in overrides:
        _apply_override(merged, argument, schema, sources)
    try:
        values = omegaconf.OmegaConf.to_container(merged, resolve=True)
    except omegaconf.errors.OmegaConfBaseException as error:
        key = str(error.full_key or "")
        raise ConfigError(f"{_origin(key, sources)}{key}: {_first_line(error)}") from error
    return _validate(schema, values, sources)


def make_config(schema: type[C], values: dict[str, Any]) -> C:
    """A validated `schema` from values that no file holds. Raises ConfigError, as `load_config`."""
    return _validate(schema, values, {})


def dump_config(config: Config) -> str:
    """The configuration as YAML that `load_config` reads back to an equal object."""
    return omegaconf.OmegaConf.to_yaml(
        omegaconf.OmegaConf.create(_escape(config.model_dump(mode="json")))
    )


def _escape(value: Any) -> Any:
    """Text with `${` in it, such that OmegaConf reads it back as text."""
    if isinstance(value, dict):
        return {key: _escape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escape(item) for item in value]
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda match: rf"{match[1] * 2}\${{", value)
    return value


def _find(path: Path, search: Sequence[Path]) -> Path:
    candidates = [path.expanduser(), *(folder / path for folder in search)]
    for candidate in candidates:
        if candidate.is_file():
            return candidate.resolve()
    near = [f for c in candidates for f in sorted(c.parent.glob("*")) if f.suffix in _READERS]
    hint = did_you_mean(path.name, [f.name for f in near]) if near else ""
    raise ConfigError(f"no configuration file {path}", hint)


def _read_yaml(path: Path) -> DictConfig:
    # OmegaConf's own loader, because PyYAML reads `3e-4` as a string.
    loaded = omegaconf.OmegaConf.load(path)
    if not isinstance(loaded, omegaconf.DictConfig):
        raise ConfigError(f"{path}: expected `key: value` pairs at the top level")
    return loaded


def _read_toml(path: Path) -> DictConfig:
    return omegaconf.OmegaConf.create(tomllib.loads(path.read_text(encoding="utf-8-sig")))


_READERS = {".yaml": _read_yaml, ".yml": _read_yaml, ".toml": _read_toml}


def _read_with_extends(path: Path, chain: tuple[Path, ...], sources: Sources) -> dict[str, Any]:
    if path in chain:
        cycle = " -> ".join(p.name for p in (*chain, path))
        raise ConfigError(f"`extends` goes round in a circle: {cycle}")
    if path.suffix not in _READERS:
        raise ConfigError(f"{path}: not a configuration file", "use .yaml, .yml or .toml")
    try:
        content = _READERS[path.suffix](path)
        parents = content.pop("extends", None) or []
    except ConfigError:
        raise
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error
    except Exception as error:  # YAML and OmegaConf have no common base for their syntax errors.
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from error
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, Sequence | omegaconf.ListConfig):
        raise ConfigError(f"{path}: `extends` takes a file or a list of files, got {parents}")
    merged: dict[str, Any] = {}
    for parent in parents:
        base = _read_with_extends(_find(path.parent / str(parent), ()), (*chain, path), sources)
        merged = _merge(merged, base)
    values: Any = omegaconf.OmegaConf.to_container(content)
    for key in _leaves(values):
        sources.pop(key, None)  # so that the latest source comes last
        sources[key] = str(path)
    return _merge(merged, values)


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Sections are merged key by key; everything else in `above` takes the place of what is below."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _leaves(value: object, prefix: str = "") -> list[str]:
    if not isinstance(value, dict):
        return [prefix]
    dot = f"{prefix}." if prefix else ""
    return [leaf for key, item in value.items() for leaf in _leaves(item, f"{dot}{key}")]


def _apply_override(
    merged: DictConfig, argument: str, schema: type[Config], sources: Sources
) -> None:
    key, equals, text = argument.partition("=")
    if not equals or not key or key.startswith("-"):
        raise ConfigError(f"argument '{argument}': expected key.path=value")
    sources.pop(key, None)
    sources[key] = f"argument '{argument}'"
    try:
        # A text field takes the text as typed: `name=007` and `name=on` stay what they are.
        annotation = _annotation(schema, key)
        choices = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
        is_text = str in choices or Path in choices
        if is_text and not (text == "null" and NoneType in choices):
            value: object = text
        else:
            value = omegaconf.OmegaConf.from_dotlist([f"value={text}"])._get_node("value")
        omegaconf.OmegaConf.update(merged, key, value, merge=True, force_add=True)
    except Exception as error:  # as above: the YAML parser's and OmegaConf's own kinds
        raise ConfigError(f"argument '{argument}': {_first_line(error)}") from error


def _nested_schema(annotation: Any) -> type[Config] | None:
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, Config):
            return kind
    return None


def _annotation(schema: type[Config], key: str) -> Any:
    """The type annotation of a dotted key, or None for a key that the schema does not know."""
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
    if details["type"] != "literal_error":  # which lists what there is
        message = message.split(", ")[0]
    return f"{origin}{key}: expected {message}, got {details['input']!r}"


def _origin(key: str, sources: Sources) -> str:
    """`file: ` or `argument '...': ` for the source of `key`, or of anything inside or above it."""
    while key:
        inside = [source for k, source in sources.items() if k == key or k.startswith(f"{key}.")]
        if inside:
            return f"{inside[-1]}: "
        key = key.rpartition(".")[0]
    return ""


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
