"""Base class of tokenizers: text <-> token ids."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from common.errors import DataError, ResearchError

END_OF_TEXT = "<|endoftext|>"
TokenIds = npt.NDArray[np.int64]


class Tokenizer(ABC):
    """Encodes and decodes text; `loses` is empty if `decode(encode(text)) == text` for every text."""

    kind: str  # its name in data.tokenizer

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[TokenIds]:
        """Encode each text to an int64 array. Special tokens are never parsed from text."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Decode `ids` to text, without special tokens."""

    @abstractmethod
    def save(self, path: Path) -> None:
        """Save everything `load_tokenizer` needs to one JSON file, atomically."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """The largest id plus one."""

    @property
    @abstractmethod
    def special_tokens(self) -> dict[str, int]:
        """{text: id}; includes `end_of_text`."""

    @property
    @abstractmethod
    def token_bytes(self) -> npt.NDArray[np.int64]:
        """(vocab_size,) int64: number of UTF-8 bytes of each token, 0 for special ones.

        Over the tokens of a text they sum to its bytes, except for what `loses` names.
        """

    @property
    def loses(self) -> str:
        """What decode(encode(text)) changes in a text; empty: nothing."""
        return ""

    @property
    def end_of_text(self) -> int:
        """The id of the token between documents."""
        return self.special_tokens[END_OF_TEXT]

    def encode(self, text: str) -> TokenIds:
        """Encode one text to int64 ids."""
        return self.encode_batch([text])[0]

    def last_border(self, text: str) -> int:
        """The last position where `text` can be cut without changing the ids, whatever text
        follows; 0: none known.
        """
        return 0

    def is_unknown(self, ids: TokenIds) -> npt.NDArray[np.bool_]:
        """Mask of ids that stand for text missing from the vocabulary."""
        return np.zeros(ids.shape, dtype=np.bool_)


class TrainableTokenizer(Tokenizer):
    """A tokenizer with a vocabulary learned from text."""

    @classmethod
    @abstractmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Learn a vocabulary of at most `vocab_size` tokens, special ones included."""


# U+2581 is a space to SentencePiece. Only letters of every Unicode version: an engine with an older
# one treats newer letters as symbols.
_LETTER = "[0-9A-Za-zÀ-ÖØ-öø-ÿ一-龥]"
_WORD_BORDER = re.compile(rf"(?<=[^\s\u2581])(?= )|(?<={_LETTER})(?=\n)")


def last_word_border(text: str) -> int:
    """The last position before a space not preceded by a space, or before a line end after a letter or digit.

    No token of the patterns in `patterns.py`, nor of a SentencePiece vocabulary trained here, spans
    it.
    """
    end, window = len(text), 1000
    while end > 0:
        start = max(0, end - window)
        found = [m.start() for m in _WORD_BORDER.finditer(text, max(0, start - 1), end)]
        places = [place for place in found if place < end]
        if places:
            return places[-1]
        end, window = start, 2 * window
    return 0


def cut_at_word_borders(text: str) -> list[str]:
    """Cut `text` at every position that `last_word_border` could return."""
    return _WORD_BORDER.split(text)


@contextmanager
def engine_errors(doing: str, hint: str = "") -> Iterator[None]:
    """Turn errors of tokenizers, tiktoken or sentencepiece into a DataError.

    They raise plain Exceptions, and a panic of their Rust code is a BaseException.
    """
    try:
        yield
    except ResearchError:
        raise
    except BaseException as error:
        if not (isinstance(error, Exception) or is_panic(error)):
            raise
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"{doing} failed ({reason[:300]})", hint) from error


def is_panic(error: BaseException) -> bool:
    """Whether Rust code panicked; checked by name, since no module exports the class."""
    return type(error).__name__ == "PanicException"


def check_encodable(texts: Iterable[str]) -> None:
    """Raise DataError for a text that is not valid UTF-8 (half of a surrogate pair)."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            code = ord(text[error.start])
            raise DataError(
                f"the text has half of a surrogate pair (U+{code:04X}) at character {error.start:,}",
                "it is not valid Unicode: repair the text, or read it with the correct encoding",
            ) from error


def check_ids(ids: Collection[int]) -> None:
    """Raise DataError for duplicate ids, or ids that leave most of the vocabulary empty.

    Embeddings have a row for each id up to the largest, so one wild id would exhaust memory.
    """
    if len(set(ids)) < len(ids):
        again = next(a for a, b in pairwise(sorted(ids)) if a == b)
        raise DataError(f"two tokens have the id {again}")
    for wild in (min(ids, default=0), max(ids, default=0)):
        if not 0 <= wild < max(_SMALL_VOCABULARY, 2 * len(ids)):
            raise DataError(f"it has {len(ids):,} tokens, and one of them has the id {wild:,}")


_SMALL_VOCABULARY = 2**16  # rows of negligible cost
