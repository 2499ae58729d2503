"""Several sources at once, `data.mixture: {name or path: weight}`, in the tokens of one vocabulary."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.data.config import DataConfig
from common.data.corpora import open_corpus
from common.data.prepare import TRAINING_CHARACTERS, TokenDataset, Tokens, texts_of
from common.data.tokenizers import TRAINABLE
from common.utils.paths import get_tokenizers_dir


@dataclass(frozen=True)
class TokenMixture(TokenDataset):
    """The prepared sources by name; each sequence of a training is drawn from one of them by weight."""

    sources: dict[str, TokenDataset]
    weights: dict[str, float]

    def tokens(self, split: str) -> Tokens:
        """All of them, one after another, between them the end of text; in memory, not mapped."""
        end = [np.array([self.tokenizer.end_of_text], dtype=self.meta["dtype"])]
        parts = [part for data in self.sources.values() for part in (end[0], data.tokens(split))]
        return np.concatenate(parts[1:])

    @property
    def fingerprint(self) -> dict[str, str]:
        parts = {
            f"{name} {split}": sha256
            for name, data in self.sources.items()
            for split, sha256 in data.fingerprint.items()
        }
        return {**parts, "weights": json.dumps(self.weights)}

    @property
    def floor_bits_per_byte(self) -> float | None:
        return None


def prepare_mixture(
    config: DataConfig, prepare: Callable[[DataConfig], TokenDataset]
) -> TokenMixture:
    """Every source of `config.mixture`, prepared. A vocabulary that is trained is learned from all of them."""
    configs = {name: _of_source(config, name) for name in config.mixture}
    if config.tokenizer in TRAINABLE:
        vocabulary = _common_vocabulary(config, list(configs.values()))
        chosen = {"tokenizer": "pretrained", "pretrained_tokenizer": vocabulary}
        configs = {name: each.model_copy(update=chosen) for name, each in configs.items()}
    sources = {name: prepare(each) for name, each in configs.items()}
    first = next(iter(sources.values()))
    splits = {
        split: {
            key: sum(data.meta["splits"][split][key] for data in sources.values())
            for key in ("tokens", "bytes", "documents")
        }
        for split in ("train", "val")
    }
    meta: dict[str, Any] = {**first.meta, "dataset": " + ".join(sources), "splits": splits}
    return TokenMixture(first.directory, first.tokenizer, meta, {}, sources, dict(config.mixture))


def _of_source(config: DataConfig, name: str) -> DataConfig:
    path = Path(name).expanduser()
    source = {"path": path.resolve()} if path.exists() else {"dataset": name, "path": None}
    return config.model_copy(update={**source, "mixture": {}})


def _common_vocabulary(config: DataConfig, configs: list[DataConfig]) -> str:
    """The name in assets/tokenizers of a vocabulary learned from all sources, learned now where it is missing."""
    corpora = [open_corpus(each) for each in configs]
    facts = [config.tokenizer, config.vocab_size, [corpus.fingerprint for corpus in corpora]]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
    name = f"mixture_{config.tokenizer}_{digest}"
    path = get_tokenizers_dir() / name / "tokenizer.json"
    if not path.exists():
        share = float("inf") if config.tokenizer == "char" else TRAINING_CHARACTERS / len(corpora)

        def texts() -> Iterator[str]:
            for corpus in corpora:
                yield from texts_of(corpus.documents(), share)

        TRAINABLE[config.tokenizer].train(texts(), config.vocab_size).save(path)
    return name
