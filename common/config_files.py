"""Configuration files and values as plain data: YAML 1.2, TOML, `extends`.

YAML is parsed by the core schema of YAML 1.2 (https://yaml.org/spec/1.2.2/#103-core-schema), not by
PyYAML's 1.1, which parses `010` as 8, `1:30` as 90, `on` as true and `3e-4` as text:

    null ~ Null NULL (nothing)          null
    true True TRUE false False FALSE    booleans
    10 -3 010 0x10 0o17                 whole numbers: 10, -3, 10, 16, 15
    1. .5 1e3 3e-4 .inf .nan            numbers
    anything else                       text: 1:30, 0b11, 1_000, 2024-01-01, on, yes, off, no, =

A number keeps its spelling, so that a text field preserves `name: 007`; number fields accept
`1_000` as in Python. Keys are always text. `<<: *anchor` merges, as in YAML 1.1. Files, the command
line and values of sweeps are all parsed here.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import yaml

from common.errors import ConfigError, did_you_mean

Sources = dict[str, str]  # dotted key -> the file or argument that set it

_LARGEST_FILE = 2**20  # bytes; PyYAML takes 10 s
LARGEST_CONFIG = 2**20  # values and characters, with aliases and interpolations expanded
_MOST_FILES = 1000  # in one `extends`, including transitive ones
_DEEPEST = 100  # nested sections, chained `extends`


class _WrittenInt(int):
    text: str

    def __repr__(self) -> str:
        return self.text


class _WrittenFloat(float):
    text: str

    def __repr__(self) -> str:
        return self.text


class _CoreLoader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}
    yaml_constructors: ClassVar[dict[str, Any]] = {}


_TAG = "tag:yaml.org,2002:"
_NULL = re.compile(r"(?:~|null|Null|NULL|)\Z")
_BOOL = re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z")
_INT = re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z")
_FLOAT = re.compile(
    r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
)


def _construct_int(loader: _CoreLoader, node: yaml.ScalarNode) -> int:
    text = node.value
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    number = _WrittenInt(text[2:] if base != 10 else text, base)
    number.text = text
    return number


def _construct_float(loader: _CoreLoader, node: yaml.ScalarNode) -> float:
    number = _WrittenFloat(re.sub(r"\.(inf|nan)", r"\1", node.value.lower()))
    number.text = node.value
    return number


def _construct_mapping(loader: _CoreLoader, node: yaml.MappingNode) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    values: dict[str, Any] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise yaml.MarkedYAMLError(problem="a key has to be text", problem_mark=key.start_mark)
        content = loader.construct_object(value, deep=True)
        if key.tag == f"{_TAG}merge":
            # The first of several takes precedence, and keys beside `<<` over all of them.
            for each in content if isinstance(content, list) else [content]:
                if not isinstance(each, dict):
                    problem = "'<<' takes a section or a list of sections"
                    raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
                merged = each | merged
        elif key.value in values:
            problem = f"duplicate key '{key.value}'"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
        else:
            values[key.value] = content
    return merged | values


def _construct_list(loader: _CoreLoader, node: yaml.SequenceNode) -> list[Any]:
    return [loader.construct_object(item, deep=True) for item in node.value]


def _add_resolvers(kind: type[yaml.SafeLoader] | type[yaml.SafeDumper]) -> None:
    for name, pattern, first in (
        ("null", _NULL, [*"~nN", ""]),
        ("bool", _BOOL, list("tTfF")),
        ("int", _INT, list("-+0123456789")),
        ("float", _FLOAT, list("-+.0123456789")),
    ):
        kind.add_implicit_resolver(f"{_TAG}{name}", pattern, first)


_add_resolvers(_CoreLoader)
_CoreLoader.add_implicit_resolver(f"{_TAG}merge", re.compile(r"<<\Z"), ["<"])
_CONSTRUCTORS: dict[str, Callable[[Any, Any], object]] = {
    "null": lambda loader, node: None,
    "bool": lambda loader, node: node.value.lower() == "true",
    "int": _construct_int,
    "float": _construct_float,
    "str": lambda loader, node: loader.construct_scalar(node),
    "map": _construct_mapping,
    "seq": _construct_list,
}
for _name, _construct in _CONSTRUCTORS.items():
    _CoreLoader.add_constructor(f"{_TAG}{_name}", _construct)


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]  # PyYAML has no types
    """Quotes strings that YAML 1.1 or 1.2 would not parse as text."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _represent_text(dumper: _Dumper, text: str) -> object:
    # PyYAML would write these line breaks verbatim, and read them back as spaces.
    style = '"' if re.search("[\x85\u2028\u2029]", text) else None
    return dumper.represent_scalar(f"{_TAG}str", text, style=style)


_add_resolvers(_Dumper)
_Dumper.add_representer(str, _represent_text)


def to_yaml(values: dict[str, Any]) -> str:
    """Format as YAML that readers of 1.1 and 1.2 both parse to equal values."""
    text: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


def parse_value(text: str) -> Any:
    """Parse YAML `text`. Raises ValueError with one line."""
    try:
        value = yaml.load(text, Loader=_CoreLoader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    check_size(value)
    return value


def check_size(values: Any) -> None:
    """Raise ValueError for more than `LARGEST_CONFIG` values and characters, with shared ones counted each time.

    Aliases and interpolations can double their targets repeatedly ("billion laughs").
    """
    sizes: dict[int, int] = {}

    def size(value: Any, depth: int) -> int:
        if isinstance(value, str):
            return 1 + len(value)
        if not isinstance(value, dict | list):
            return 1
        if depth > _DEEPEST:
            raise ValueError("it is nested too deeply")
        if id(value) not in sizes:
            keys = sum(map(len, value)) if isinstance(value, dict) else 0
            items = value.values() if isinstance(value, dict) else value
            sizes[id(value)] = 1 + keys + sum(size(item, depth + 1) for item in items)
        return sizes[id(value)]

    if size(values, 0) > LARGEST_CONFIG:
        raise ValueError(f"it has more than {LARGEST_CONFIG:,} values and characters when expanded")


def find(path: Path, search: Sequence[Path] = ()) -> Path:
    """Resolve `path` against the current folder, then each in `search`. Raises ConfigError with the nearest name."""
    candidates = [path.expanduser(), *(folder / path for folder in search)]
    for candidate in candidates:
        try:
            if candidate.is_file():
                return candidate.resolve()
        except (OSError, ValueError) as error:  # an invalid file name
            reason = error.strerror if isinstance(error, OSError) else error
            raise ConfigError(f"no configuration file {str(path)[:80]!r}: {reason}") from error
    near = [f for c in candidates for f in sorted(c.parent.glob("*")) if f.suffix in _READERS]
    hint = did_you_mean(path.name, [f.name for f in near]) if near else ""
    raise ConfigError(f"no configuration file {path}", hint)


def read_config_file(path: Path) -> tuple[dict[str, Any], Sources]:
    """Return (values, the file of each) of a file and all that it extends.

    Raises ConfigError for a file that is missing, unreadable or too large, and for a cycle of `extends`.
    """
    return _read(path, (), {})


_Read = tuple[dict[str, Any], Sources]


def _read(path: Path, chain: tuple[Path, ...], known: dict[Path, _Read]) -> _Read:
    """`known`: files already read; one file is often extended by several."""
    if path in chain:
        cycle = " -> ".join(p.name for p in (*chain, path))
        raise ConfigError(f"`extends` has a cycle: {cycle}")
    if path in known:
        return known[path]
    if len(chain) >= _DEEPEST:
        raise ConfigError(f"{path}: `extends` chains {len(chain)} files")
    values = _content(path)
    parents = values.pop("extends", None) or []
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or len(parents) > _MOST_FILES:
        raise ConfigError(f"{path}: `extends` takes a file or a list of files, got {parents}"[:300])
    merged: dict[str, Any] = {}
    sources: Sources = {}
    for parent in parents:
        base = _read(find(path.parent / str(parent)), (*chain, path), known)
        merged = merge(merged, base[0])
        for key, source in base[1].items():
            set_source(sources, key, source)
    for key in leaves(values):
        set_source(sources, key, str(path))
    if len(known) >= _MOST_FILES:
        raise ConfigError(f"{path}: `extends` names more than {_MOST_FILES} files")
    known[path] = merge(merged, values), sources
    return known[path]


def _content(path: Path) -> dict[str, Any]:
    if path.suffix not in _READERS:
        raise ConfigError(f"{path}: not a configuration file", "use .yaml, .yml or .toml")
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_FILE + 1)
        if len(content) > _LARGEST_FILE:
            raise ConfigError(f"{path}: larger than {_LARGEST_FILE:,} bytes")
        # Skip the byte order mark of Windows editors.
        values = _READERS[path.suffix](content.decode("utf-8-sig"))
        check_size(values)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: it is nested too deeply") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected `key: value` pairs at the top level")
    return values


_READERS: dict[str, Callable[[str], Any]] = {
    ".yaml": parse_value,
    ".yml": parse_value,
    ".toml": tomllib.loads,
}


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Merge sections key by key; all other values in `above` replace those below."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def leaves(value: object, prefix: str = "") -> list[str]:
    """The dotted keys of all values that are not sections."""
    if not isinstance(value, dict):
        return [prefix]
    dot = f"{prefix}." if prefix else ""
    return [leaf for key, item in value.items() for leaf in leaves(item, f"{dot}{key}")]


def set_source(sources: Sources, key: str, source: str) -> None:
    """The latest source comes last."""
    sources.pop(key, None)
    sources[key] = source
