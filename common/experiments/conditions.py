"""What a run came from besides its configuration: its seed, the machine, the tokens, changes at a resume."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from common.experiments.metrics import VAL_QUICK, is_per_token

Manifest = Mapping[str, Any]
CONDITIONS = ("precision", "compiled", "threads", "device", "cpu")
_MOST_NAMES = 4


def seed_of(manifest: Manifest) -> int | None:
    """The seed, from the configuration where the manifest has none."""
    config = manifest.get("config")
    for seed in (manifest.get("seed"), config.get("seed") if isinstance(config, Mapping) else None):
        if isinstance(seed, int) and not isinstance(seed, bool):
            return seed
    return None


def changes_of(manifest: Manifest) -> list[str]:
    """The changes of configuration that a resume made: ["optimizer.lr 0.004 -> 0.001 at step 50"]."""
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
    """The facts in which runs differ, with the value of each run; None: not recorded."""
    facts = [facts_of(manifest) for manifest in manifests]
    keys = dict.fromkeys(key for found in facts for key in found)
    values = {key: [found.get(key) for found in facts] for key in keys}
    return {key: found for key, found in values.items() if any(v != found[0] for v in found)}


def describe_differences(manifests: Sequence[Manifest]) -> list[str]:
    """["precision differs: bf32 (a, b), fp32 (c)"] of every fact in which runs differ."""
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
    """Why two runs cannot be compared by `metric` on `split`: a loss per token is about the tokens, too,
    and one of few batches about these."""
    batches = _data(base).get(VAL_QUICK), _data(other).get(VAL_QUICK)
    if split == VAL_QUICK and None not in batches and batches[0] != batches[1]:
        return "other batches"
    if split == "val" and holds_quick(base) != holds_quick(other):
        return "an earlier version logged losses of few batches as val"
    return other_tokens(base, other, split) if is_per_token(metric) else None


def holds_quick(manifest: Manifest) -> bool:
    """Whether the run logged its evaluations of few batches as `val`, as earlier versions did; since
    then they are logged as `val_quick`, of which a fingerprint is recorded."""
    config = manifest.get("config")
    training = config.get("training") if isinstance(config, Mapping) else None
    few = training.get("eval_batches") if isinstance(training, Mapping) else None
    return few is not None and bool(_data(manifest)) and VAL_QUICK not in _data(manifest)


def other_tokens(base: Manifest, other: Manifest, split: str | None = None) -> str | None:
    """Whether the tokenizers differ or the data of `split` (None: of any); what is not recorded does not."""
    tokenizers = (base.get("tokenizer"), other.get("tokenizer"))
    if None not in tokenizers and tokenizers[0] != tokenizers[1]:
        return "another tokenizer"
    first, second = _data(base), _data(other)
    splits = first.keys() & second.keys()
    if any(first[key] != second[key] for key in splits if split in (None, key)):
        return "other data"
    return None


def some_of(names: Iterable[str]) -> str:
    """The first names, and how many more there are."""
    listed = list(names)
    more = len(listed) - _MOST_NAMES
    return ", ".join(listed[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
