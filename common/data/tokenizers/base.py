"""The contract of every tokenizer: text <-> token ids."""

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
    def vocab_size(self) -> int:
        """The largest id and one more."""

    @property
    @abstractmethod
    def special_tokens(self) -> dict[str, int]:
        """{text: id}; holds the one that `end_of_text` is."""

    @property
    @abstractmethod
    def token_bytes(self) -> npt.NDArray[np.int64]:
        """(vocab_size,) int64: the UTF-8 bytes that each token stands for, 0 for special ones.

        Those of a text add up to its bytes, unless `loses` says what is lost.
        """

    @property
    def loses(self) -> str:
        """What a round trip changes in a text; empty: nothing."""
        return ""

    @property
    def end_of_text(self) -> int:
        """The id between two documents."""
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


# U+2581 is a space to SentencePiece. The letters are those that every version of Unicode has: an engine
# with an older one takes newer letters for symbols.
_LETTER = "[0-9A-Za-zÀ-ÖØ-öø-ÿ一-龥]"
_WORD_BORDER = re.compile(rf"(?<=[^\s\u2581])(?= )|(?<={_LETTER})(?=\n)")


def last_word_border(text: str) -> int:
    """The last place before a space that follows no space, or before a line end that follows a letter or digit.

    No pattern of `patterns.py`, and no SentencePiece vocabulary trained here, has a token that spans it.
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
    """`text` in pieces, cut at every place that `last_word_border` could return."""
    return _WORD_BORDER.split(text)


@contextmanager
def engine_errors(doing: str, hint: str = "") -> Iterator[None]:
    """Turn what tokenizers, tiktoken or sentencepiece raise into a DataError.

    They raise nothing narrower than Exception, and a panic of their Rust code is a BaseException.
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
    """Whether Rust code panicked: no module exports the class, so its name decides."""
    return type(error).__name__ == "PanicException"


def check_encodable(texts: Iterable[str]) -> None:
    """Raise DataError for a text that cannot be written as UTF-8: it has half of a surrogate pair."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            code = ord(text[error.start])
            raise DataError(
                f"the text has half of a surrogate pair (U+{code:04X}) at character {error.start:,}",
                "it is not valid Unicode: repair the text, or read it with the right encoding",
            ) from error


def check_ids(ids: Collection[int]) -> None:
    """Raise DataError for ids that name two tokens, or leave most of the vocabulary empty.

    Tables and embeddings have a row for each id up to the largest, so one wild id would fill the memory.
    """
    if len(set(ids)) < len(ids):
        again = next(a for a, b in pairwise(sorted(ids)) if a == b)
        raise DataError(f"two tokens have the id {again}")
    for wild in (min(ids, default=0), max(ids, default=0)):
        if not 0 <= wild < max(_SMALL_VOCABULARY, 2 * len(ids)):
            raise DataError(f"it has {len(ids):,} tokens, and one of them has the id {wild:,}")


_SMALL_VOCABULARY = 2**16  # rows that cost nothing
