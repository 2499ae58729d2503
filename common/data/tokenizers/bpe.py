"""Byte-level byte-pair encoding (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", 2.2)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tokenizers as hf

from common.data.tokenizers.base import (
    END_OF_TEXT,
    TokenIds,
    TrainableTokenizer,
    last_word_border,
)
from common.data.tokenizers.fast_bpe import FastBPE
from common.utils.files import write_text_atomic

_BATCH = 256  # texts handed to the trainer at once


class BPETokenizer(TrainableTokenizer):
    """Every text can be encoded, nothing is unknown. Trained, and kept, by Hugging Face tokenizers."""

    kind = "bpe"

    def __init__(self, tokenizer: hf.Tokenizer) -> None:
        # `<|endoftext|>` written in a text is ordinary text, never the border of a document.
        tokenizer.encode_special_tokens = True
        self.tokenizer = tokenizer

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

    def encode_batch(self, texts: Sequence[str]) -> list[TokenIds]:
        if self._fast is not None:
            return [self._fast.encode(text) for text in texts]
        encodings = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]

    @cached_property
    def _fast(self) -> FastBPE | None:
        return FastBPE.of(json.loads(self.tokenizer.to_str()))

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    def save(self, path: Path) -> None:
        write_text_atomic(path, self.tokenizer.to_str(pretty=False))

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.get_vocab_size()

    @property
    def special_tokens(self) -> dict[str, int]:
        return {t.content: i for i, t in self.tokenizer.get_added_tokens_decoder().items()}

    @property
    def token_bytes(self) -> npt.NDArray[np.int64]:
        sizes = np.zeros(self.vocab_size, dtype=np.int64)
        for token, index in self.tokenizer.get_vocab(with_added_tokens=False).items():
            sizes[index] = len(token)  # the byte-level alphabet writes each byte as one character
        sizes[list(self.special_tokens.values())] = 0
        return sizes

    def last_border(self, text: str) -> int:
        return last_word_border(text)


def _batches(texts: Iterable[str]) -> Iterable[list[str]]:
    """One call into the trainer for many texts: a call for each is slower than the counting."""
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    yield batch
