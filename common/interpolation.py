"""`${...}` in configurations: another value of the same configuration, or a harmless environment variable.

    ${optimizer.lr}  ${.lr}  ${..model.hidden_size}    by key; leading dots are relative to the section
    run_${seed}  ${sizes.${name}}                      inside text, and nested
    ${oc.env:USER}  ${oc.env:SCRATCH,/tmp}             one of `HARMLESS_VARIABLES`, with a default
    ${oc.decode:null}                                  parsed as YAML; the only null in TOML
    \\${name}                                           not interpolated

The notation is OmegaConf's. OmegaConf itself would read any environment variable, but
configurations are stored with experiments and visible to everyone, so a token must not end up in
one.
"""

from __future__ import annotations

import os
import re
from typing import Any

from common.config_files import LARGEST_CONFIG, check_size, parse_value

# Paths and sizes, no secrets. (SLURM_JWT is a secret, so SLURM's are listed by name.)
HARMLESS_VARIABLES = (
    *("HOME", "USER", "LOGNAME", "HOSTNAME", "PWD", "TMPDIR", "SCRATCH", "WORK"),
    *("RESEARCH_ASSETS_DIR", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"),
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    *("SLURM_JOB_ID", "SLURM_JOB_NAME", "SLURM_JOB_PARTITION", "SLURM_JOB_NUM_NODES"),
    *("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_CLUSTER_NAME", "SLURM_CPUS_ON_NODE"),
    *("SLURM_CPUS_PER_TASK", "SLURM_GPUS_ON_NODE", "SLURM_LOCALID", "SLURM_NNODES"),
    *("SLURM_NODEID", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_SUBMIT_DIR", "SLURM_TMPDIR"),
)
_OPENING = re.compile(r"(\\*)\$\{")
_Path = tuple[str, ...]


class InterpolationError(ValueError):
    """`key`: dotted key of the value that cannot be resolved."""

    def __init__(self, key: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.key, self.hint = key, hint


def interpolate(values: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of `values` with every `${...}` resolved.

    Raises InterpolationError for a missing key or variable, a variable that is not harmless, a
    cycle, a resolver other than `oc.env` and `oc.decode`, and a result of unbounded size.
    """
    resolved: dict[str, Any] = _Interpolation(values).value(())
    try:
        check_size(resolved)
    except ValueError as error:
        raise InterpolationError("", str(error)) from error
    return resolved


def escape(value: Any) -> Any:
    """Escape `${` in text, so that `interpolate` returns it unchanged."""
    if isinstance(value, dict):
        return {key: escape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [escape(item) for item in value]
    if isinstance(value, str):
        return _OPENING.sub(lambda match: rf"{match[1] * 2}\${{", value)
    return value


class _Interpolation:
    """One pass over a configuration. Every key is resolved once and cached."""

    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root
        self._resolved: dict[_Path, Any] = {}
        self._resolving: dict[_Path, None] = {}

    def value(self, place: _Path) -> Any:
        """Resolve the value at `place`."""
        if place in self._resolved:
            return self._resolved[place]
        if place in self._resolving:
            circle = " -> ".join(".".join(each) for each in (*self._resolving, place) if each)
            raise InterpolationError(".".join(place), f"interpolation cycle: {circle}")
        raw = self._raw(place)
        self._resolving[place] = None
        try:
            self._resolved[place] = self._resolve(raw, place)
        except RecursionError as error:
            raise InterpolationError(
                ".".join(place), "interpolations are nested too deeply"
            ) from error
        del self._resolving[place]
        return self._resolved[place]

    def _resolve(self, raw: Any, place: _Path) -> Any:
        if isinstance(raw, dict):
            return {key: self.value((*place, key)) for key in raw}
        if isinstance(raw, list):
            return [self.value((*place, str(number))) for number in range(len(raw))]
        return self._text(raw, place) if isinstance(raw, str) and "${" in raw else raw

    def _raw(self, place: _Path) -> Any:
        value: Any = self._root
        for part in place:
            value = value[part] if isinstance(value, dict) else value[int(part)]
        return value

    def _text(self, text: str, place: _Path) -> Any:
        """Resolve the interpolations in `text`; a single one without other text keeps its type."""
        parts: list[Any] = []
        position = 0
        while match := _OPENING.search(text, position):
            backslashes = len(match[1])
            parts.append(text[position : match.start()] + "\\" * (backslashes // 2))
            if backslashes % 2:
                parts.append("${")
                position = match.end()
                continue
            end = _closing(text, match.end())
            if end is None:
                raise InterpolationError(".".join(place), f"'{text[:80]}': unclosed brace")
            parts.append(self._expression(text[match.end() : end], place))
            position = end + 1
        parts.append(text[position:])
        parts = [part for part in parts if part != ""] or [""]
        if len(parts) == 1:
            return parts[0]
        if any(isinstance(part, dict | list) for part in parts):
            raise InterpolationError(
                ".".join(place), f"'{text[:80]}': cannot insert a section into text"
            )
        joined = "".join(map(str, parts))
        if len(joined) > LARGEST_CONFIG:
            raise InterpolationError(".".join(place), "the text grows without bounds")
        return joined

    def _expression(self, inner: str, place: _Path) -> Any:
        inner = str(self._text(inner, place)) if "${" in inner else inner
        name, colon, argument = inner.partition(":")
        if not colon:
            return self._look_up(inner.strip(), place)
        if name.strip() == "oc.env":
            return _environment(argument, place)
        if name.strip() == "oc.decode":
            try:
                return parse_value(argument)
            except ValueError as error:
                raise InterpolationError(".".join(place), str(error)) from error
        raise InterpolationError(
            ".".join(place),
            f"unknown resolver '{name}'; configurations have oc.env and oc.decode",
        )

    def _look_up(self, key: str, place: _Path) -> Any:
        name = key.lstrip(".")
        dots = len(key) - len(name)
        if dots > len(place):
            raise InterpolationError(".".join(place), f"'${{{key}}}' leads out of the file")
        target = place[: len(place) - dots] if dots else ()
        node: Any = self._raw(target)
        place_of_node: _Path | None = target
        for part in re.sub(r"\[(\w+)\]", r".\1", name).split("."):
            if isinstance(node, str) and "${" in node and place_of_node is not None:
                node, place_of_node = self.value(place_of_node), None  # an interpolated section
            if isinstance(node, dict) and part in node:
                node = node[part]
            elif isinstance(node, list) and part.isdecimal() and int(part) < len(node):
                node = node[int(part)]
            else:
                message = f"no '{name}' to interpolate"
                raise InterpolationError(".".join(place), message)
            place_of_node = None if place_of_node is None else (*place_of_node, part)
        return node if place_of_node is None else self.value(place_of_node)


def _environment(argument: str, place: _Path) -> str | None:
    name, comma, default = (part.strip() for part in argument.partition(","))
    if name not in HARMLESS_VARIABLES:
        raise InterpolationError(
            ".".join(place),
            f"the variable {name} is not allowed: configurations are stored and visible to everyone",
            f"allowed: {', '.join(HARMLESS_VARIABLES)}",
        )
    if name in os.environ:
        return os.environ[name]
    if not comma:
        raise InterpolationError(".".join(place), f"the environment has no variable {name}")
    return None if default == "null" else default.strip("\"'")


def _closing(text: str, start: int) -> int | None:
    """Index of the brace that closes the one opened before `start`."""
    depth = 1
    for position in range(start, len(text)):
        depth += (text[position] == "{") - (text[position] == "}")
        if depth == 0:
            return position
    return None
