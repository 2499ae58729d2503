"""The contract of every tokenizer: text <-> token ids."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

END_OF_TEXT = "<|endoftext|>"
TokenIds = npt.NDArray[np.int64]


class Tokenizer(ABC):
    """Encodes and decodes; `loses` says whether `decode(encode(text)) == text` for every text."""

    kind: str  # its name in data.tokenizer

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[TokenIds]:
        """Ids of each text, as int64 arrays. Special tokens are never read from text."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; special tokens are left out."""

    @abstractmethod
    def save(self, path: Path) -> None:
        """Write everything `load_tokenizer` needs to one JSON file, atomically."""

    @property
    @abstractmethod
    def vocab_size(self) -> int: ...

    @property
    @abstractmethod
    def special_tokens(self) -> dict[str, int]:
        """{text: id}; holds the one that `end_of_text` is."""

    @property
    @abstractmethod
    def token_bytes(self) -> npt.NDArray[np.int64]:
        """(vocab_size,) int64: the UTF-8 bytes that each token stands for, 0 for special ones."""

    @property
    def loses(self) -> str:
        """What a round trip changes in a text; empty: nothing."""
        return ""

    @property
    def end_of_text(self) -> int:
        return self.special_tokens[END_OF_TEXT]

    def encode(self, text: str) -> TokenIds:
        """Ids of one text, int64."""
        return self.encode_batch([text])[0]

    def last_border(self, text: str) -> int:
        """The last place where `text` can be cut so that the ids of both parts are those of the whole.

        0: none is known, for whatever follows.
        """
        return 0

    def is_unknown(self, ids: TokenIds) -> npt.NDArray[np.bool_]:
        """Which ids stand for text that the vocabulary has no token of its own for."""
        return np.zeros(ids.shape, dtype=np.bool_)


class TrainableTokenizer(Tokenizer):
    """One whose vocabulary is learned from text."""

    @classmethod
    @abstractmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Learn a vocabulary of at most `vocab_size` tokens, special ones included."""


_WORD_BORDER = re.compile(r"(?<=\S) |(?<=[^\W_])\n")


def last_word_border(text: str) -> int:
    """The last space that follows no space, or line end that follows a letter or digit.

    No pattern of GPT-2, cl100k or o200k, and no SentencePiece vocabulary trained here, has a token
    that spans the place before it.
    """
    end, window = len(text), 1000
    while end > 0:
        start = max(0, end - window)
        places = [match.start() for match in _WORD_BORDER.finditer(text, max(0, start - 1), end)]
        if places:
            return places[-1]
        end, window = start, 2 * window
    return 0
