"""The model card (README.md) of a model on the hub: usage, metrics, training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import yaml


@dataclass(frozen=True)
class CardFacts:
    """Contents of a model card.

    Args:
        manifest: of the experiment; facts about machine and user are omitted.
        metrics: of the uploaded weights on the validation split.
        fingerprint: SHA-256 of the token files, by split.
    """

    repo_id: str
    family: str
    checkpoint: str
    parameters: int
    vocab_size: int
    context_length: int
    manifest: Mapping[str, Any]
    metrics: Mapping[str, float]
    fingerprint: Mapping[str, str]


def model_card(facts: CardFacts) -> str:
    """Markdown with YAML front matter."""
    title = facts.repo_id.rpartition("/")[2]
    name, project = facts.manifest["name"], facts.manifest["project"]
    front_matter = yaml.safe_dump(_front_matter(facts), sort_keys=False, allow_unicode=True)
    return f"""---
{front_matter}---

# {title}

A {facts.family} of {facts.parameters:,} parameters, {facts.vocab_size:,} words and a context of \
{facts.context_length:,} tokens: the experiment `{name}` of the project `{project}`.

## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{facts.repo_id}")
model = AutoModelForCausalLM.from_pretrained("{facts.repo_id}")
ids = tokenizer({_prompt(facts.manifest["config"])!r}, return_tensors="pt").input_ids
print(tokenizer.decode(model.generate(ids, max_length={min(facts.context_length, 100)}, do_sample=True)[0]))
```

In the repository that it was trained in:

```python
from common.data import download_model
from common.models import load_pretrained

model = load_pretrained(download_model("{facts.repo_id}"))
```

## Result

On the whole validation split, with these weights:

{_table({key: _number(value) for key, value in facts.metrics.items()})}

## Training

{_table(_training(facts))}

## Configuration

{_fenced(yaml.safe_dump(_public(facts.manifest["config"]), sort_keys=False, allow_unicode=True))}
"""


def _front_matter(facts: CardFacts) -> dict[str, Any]:
    data = facts.manifest["config"].get("data", {})
    source = {"datasets": [data["hub"]]} if data.get("hub") else {}
    measured = [
        {"type": key, "value": float(f"{facts.metrics[key]:.6g}")}
        for key in ("loss", "perplexity", "bits_per_byte")
    ]
    dataset = {"name": _dataset(data), "type": data.get("hub") or _dataset(data)}
    result = {
        "task": {"type": "text-generation"},
        "dataset": {**dataset, "split": "validation"},
        "metrics": measured,
    }
    return {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": [facts.family, *facts.manifest["tags"]],
        **source,
        "model-index": [{"name": facts.repo_id.rpartition("/")[2], "results": [result]}],
    }


def _training(facts: CardFacts) -> dict[str, str]:
    manifest = facts.manifest
    data, commit = manifest["config"].get("data", {}), manifest.get("git_commit")
    changed = " with uncommitted changes" if manifest.get("git_dirty") else ""
    packages = {k: v for k, v in manifest.get("packages", {}).items() if v}
    rows = {
        "checkpoint": facts.checkpoint,
        "seed": manifest.get("seed"),
        "data": _dataset(data),
        "data, SHA-256 of the tokens": ", ".join(f"{k} {v}" for k, v in facts.fingerprint.items()),
        "tokenizer": data.get("tokenizer"),
        "tokens seen": f"{manifest['tokens']:,}" if manifest.get("tokens") else None,
        "started": manifest.get("started"),
        "seconds": manifest.get("duration"),
        "commit": f"`{commit}`{changed}" if commit else None,
        "Python": manifest.get("python"),
        "packages": ", ".join(f"{k} {v}" for k, v in packages.items()),
    }
    return {key: str(value) for key, value in rows.items() if value not in (None, "")}


def _prompt(config: Mapping[str, Any]) -> str:
    """A prompt that the tokenizer can encode: one of the sample prompts in training."""
    prompts = [prompt for prompt in config.get("samples", {}).get("prompts", []) if prompt]
    return str(prompts[0]) if prompts else "Once upon a time"


def _dataset(data: Mapping[str, Any]) -> str:
    return str(data.get("hub") or _public(data.get("path")) or data.get("dataset") or "a text")


def _public(value: Any) -> Any:
    """Remove local folders: keep only the last part of absolute paths."""
    if isinstance(value, dict):
        return {key: _public(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_public(item) for item in value]
    if isinstance(value, str) and PurePath(value).is_absolute() and len(PurePath(value).parts) > 2:
        return PurePath(value).name
    return value


def _number(value: float) -> str:
    return f"{int(value):,}" if float(value).is_integer() else f"{value:.4f}"


def _table(rows: Mapping[str, str]) -> str:
    escaped = {key: value.replace("|", "\\|").replace("\n", " ") for key, value in rows.items()}
    return "\n".join(["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in escaped.items())])


def _fenced(text: str) -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}yaml\n{text}{fence}"
