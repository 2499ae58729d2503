"""One token per character."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from common.data.tokenizers.base import END_OF_TEXT, TokenIds, TrainableTokenizer
from common.errors import DataError
from common.utils.files import write_text_atomic


class CharTokenizer(TrainableTokenizer):
    """One token per character; encoding a character unseen in training raises DataError."""

    kind = "char"

    def __init__(self, characters: Sequence[str]) -> None:
        self.characters = sorted(characters)
        self._codes = np.array([ord(c) for c in self.characters], dtype=np.uint32)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int = 0) -> CharTokenizer:
        """`vocab_size` has no effect: the text determines it."""
        return cls(sorted(set().union(*texts)))

    def encode_batch(self, texts: Sequence[str]) -> list[TokenIds]:
        return [self._encode(text) for text in texts]

    def _encode(self, text: str) -> TokenIds:
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
        indices = np.searchsorted(self._codes, codes)
        known = (
            np.take(self._codes, indices, mode="clip") == codes if len(self._codes) else codes < 0
        )
        if not known.all():
            character = chr(codes[~known][0])
            raise DataError(
                f"the character {character!r} (U+{ord(character):04X}) is not in the vocabulary",
                "use other text, or a tokenizer that encodes every character: data.tokenizer=bpe",
            )
        return indices + 1  # 0 is <|endoftext|>

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.characters[i - 1] for i in ids if i > 0)

    def save(self, path: Path) -> None:
        content = {"type": "char", "characters": "".join(self.characters)}
        write_text_atomic(path, json.dumps(content))

    @property
    def vocab_size(self) -> int:
        return len(self.characters) + 1

    @property
    def special_tokens(self) -> dict[str, int]:
        return {END_OF_TEXT: 0}

    @property
    def token_bytes(self) -> npt.NDArray[np.int64]:
        sizes = [0, *(len(c.encode("utf-8", "surrogatepass")) for c in self.characters)]
        return np.array(sizes, dtype=np.int64)

    def last_border(self, text: str) -> int:
        return len(text)
