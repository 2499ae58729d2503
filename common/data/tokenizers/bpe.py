"""Byte-level byte-pair encoding (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", 2.2)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tokenizers as hf

from common.data.tokenizers.base import END_OF_TEXT, TrainableTokenizer, last_word_border
from common.data.tokenizers.pretrained import PretrainedTokenizer
from common.utils.files import write_text_atomic

_BATCH = 256  # texts handed to the trainer at once


class BPETokenizer(PretrainedTokenizer, TrainableTokenizer):
    """Encodes every text without unknown tokens. Trained and stored by Hugging Face tokenizers."""

    kind = "bpe"

    def __init__(self, tokenizer: hf.Tokenizer) -> None:
        super().__init__(tokenizer, END_OF_TEXT)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> BPETokenizer:
        tokenizer = hf.Tokenizer(hf.models.BPE())
        tokenizer.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = hf.decoders.ByteLevel()
        trainer = hf.trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=sorted(hf.pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(_batches(texts), trainer)
        return cls(tokenizer)

    @classmethod
    def describes(cls, content: dict[str, Any]) -> bool:
        """Whether this tokenizer.json equals the output of `train`, except for the vocabulary."""
        if content["model"].get("type", "BPE") != "BPE":
            return False
        ours = json.loads(cls.train([], 257).tokenizer.to_str())
        return _without_vocabulary(content) == _without_vocabulary(ours)

    def save(self, path: Path) -> None:
        write_text_atomic(path, self.tokenizer.to_str(pretty=False))

    def last_border(self, text: str) -> int:
        return last_word_border(text)


def _without_vocabulary(content: dict[str, Any]) -> str:
    """The description as the installed version of tokenizers writes it."""
    model = content["model"] | {"vocab": {}, "merges": []}
    return hf.Tokenizer.from_str(json.dumps(content | {"model": model})).to_str()


def _batches(texts: Iterable[str]) -> Iterable[list[str]]:
    """Pass many texts per call to the trainer: a call for each is slower than the counting."""
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    yield batch
