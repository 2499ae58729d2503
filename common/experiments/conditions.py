"""The origin of a run: configuration and its hash, seed, machine, tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from common.experiments.metrics import VAL_QUICK, is_per_token

Manifest = Mapping[str, Any]
CONDITIONS = ("precision", "compiled", "threads", "device", "cpu")
_MOST_NAMES = 4
_ABSENT = object()


# Configurations ------------------------------------------------------------------------------------


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"model": {"num_layers": 4}} -> {"model.num_layers": 4}

    A key with a dot is quoted, and an empty mapping is a value, so that the result is unique.
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f'{prefix}"{key}"' if "." in str(key) else f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat


def diff_configs(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Keys on which the configurations differ, with the value of each (None if absent)."""
    return diff_flat([flatten(config) for config in configs])


def diff_flat(flat: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """`diff_configs` of flattened configurations."""
    different = {}
    for key in dict.fromkeys(key for config in flat for key in config):
        values = [config.get(key, _ABSENT) for config in flat]
        if any(value is _ABSENT or not _is_same(value, values[0]) for value in values):
            different[key] = [None if value is _ABSENT else value for value in values]
    return different


def _is_same(one: Any, other: Any) -> bool:
    """Equality of configuration values: true is not 1, and NaN equals NaN."""
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_is_same, one, other))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_is_same(one[key], other[key]) for key in one)
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    return bool(one == other or (one != one and other != other))


def config_hash(manifest: Mapping[str, Any]) -> str:
    """Hash that is equal for runs of one project whose configurations differ only in `seed`.

    A run without a configuration, or whose configuration was changed by a resume, equals only
    itself.
    """
    config = manifest.get("config")
    if isinstance(config, Mapping) and config and not changes_of(manifest):
        return config_hash_of(manifest)
    return _digest([manifest["name"]])


def config_hash_of(manifest: Mapping[str, Any]) -> str:
    """The hash of project and configuration without its seed."""
    config = {key: value for key, value in manifest["config"].items() if key != "seed"}
    return _digest([manifest["project"], config])


def _digest(identity: object) -> str:
    from hashlib import sha256  # loads OpenSSL: 10 ms

    return sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


# Conditions ----------------------------------------------------------------------------------------


def seed_of(manifest: Manifest) -> int | None:
    """The seed, from the configuration if the manifest has none."""
    config = manifest.get("config")
    for seed in (manifest.get("seed"), config.get("seed") if isinstance(config, Mapping) else None):
        if isinstance(seed, int) and not isinstance(seed, bool):
            return seed
    return None


def changes_of(manifest: Manifest) -> list[str]:
    """Configuration changes by resumes: ["optimizer.lr 0.004 -> 0.001 at step 50"]."""
    starts = manifest.get("starts")
    found = []
    for start in starts if isinstance(starts, list) else []:
        changes = start.get("changes") if isinstance(start, Mapping) else None
        for key, (before, after) in (changes or {}).items():
            found.append(f"{key} {before} -> {after} at step {start.get('step')}")
    return found


def facts_of(manifest: Manifest) -> dict[str, Any]:
    """{name: value} of the CONDITIONS, the tokenizer and the data of each split; None: not recorded."""
    facts = {key: manifest.get(key) for key in (*CONDITIONS, "tokenizer")}
    return facts | {f"data_fingerprint.{k}": v for k, v in _data(manifest).items()}


def _data(manifest: Manifest) -> Mapping[str, Any]:
    data = manifest.get("data_fingerprint")
    return data if isinstance(data, Mapping) else {}


def different_facts(manifests: Sequence[Manifest]) -> dict[str, list[Any]]:
    """Facts in which runs differ, with the value of each run; None: not recorded."""
    facts = [facts_of(manifest) for manifest in manifests]
    keys = dict.fromkeys(key for found in facts for key in found)
    values = {key: [found.get(key) for found in facts] for key in keys}
    return {key: found for key, found in values.items() if any(v != found[0] for v in found)}


def describe_differences(manifests: Sequence[Manifest]) -> list[str]:
    """["precision differs: bf32 (a, b), fp32 (c)"] for every fact in which runs differ."""
    lines = []
    for key, values in different_facts(manifests).items():
        names: dict[str, list[str]] = {}
        for manifest, value in zip(manifests, values, strict=True):
            names.setdefault(_shown(key, value), []).append(manifest["name"])
        parts = (f"{value} ({some_of(found)})" for value, found in names.items())
        lines.append(f"{key} differs: {', '.join(parts)}")
    return lines


def _shown(key: str, value: Any) -> str:
    if value is None:
        return "not recorded"
    return str(value) if key in CONDITIONS else str(value)[:8]  # of a SHA-256


def why_incomparable(metric: str, split: str, base: Manifest, other: Manifest) -> str | None:
    """Reason why two runs cannot be compared by `metric` on `split`: a loss per token depends on
    the tokens, and a loss over few batches on these."""
    batches = _data(base).get(VAL_QUICK), _data(other).get(VAL_QUICK)
    if split == VAL_QUICK and None not in batches and batches[0] != batches[1]:
        return "other batches"
    if is_per_token(metric) and is_bound(base) != is_bound(other):
        return "one is an upper bound"
    if split == "val" and holds_quick(base) != holds_quick(other):
        return "an earlier version logged losses of few batches as val"
    return other_tokens(base, other, split) if is_per_token(metric) else None


def is_bound(manifest: Manifest) -> bool:
    """Whether the losses of the run are upper bounds, as those of masked diffusion."""
    return bool(manifest.get("loss_is_bound"))


def holds_quick(manifest: Manifest) -> bool:
    """Whether the run logged evaluations of few batches as `val`, as earlier versions did; now they
    are logged as `val_quick`, with a recorded fingerprint."""
    config = manifest.get("config")
    training = config.get("training") if isinstance(config, Mapping) else None
    few = training.get("eval_batches") if isinstance(training, Mapping) else None
    return few is not None and bool(_data(manifest)) and VAL_QUICK not in _data(manifest)


def other_tokens(base: Manifest, other: Manifest, split: str | None = None) -> str | None:
    """Whether the tokenizers or the data of `split` (None: any) differ, as far as recorded."""
    tokenizers = (base.get("tokenizer"), other.get("tokenizer"))
    if None not in tokenizers and tokenizers[0] != tokenizers[1]:
        return "another tokenizer"
    first, second = _data(base), _data(other)
    splits = first.keys() & second.keys()
    if any(first[key] != second[key] for key in splits if split in (None, key)):
        return "other data"
    return None


def some_of(names: Iterable[str]) -> str:
    """The first names, and the number of others."""
    listed = list(names)
    more = len(listed) - _MOST_NAMES
    return ", ".join(listed[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
