"""Text <-> token ids, one contract for every kind of tokenizer.

`Char` has one token per character of the training text. `BPE` is byte-level (Radford et al. 2019,
"Language Models are Unsupervised Multitask Learners", section 2.2), trained and run by Hugging Face
tokenizers, so it can encode any text. Both keep `<|endoftext|>` for the borders of documents.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers as hf

from common.errors import DataError
from common.utils.files import read_json, write_text_atomic

END_OF_TEXT = "<|endoftext|>"
TokenIds = npt.NDArray[np.int64]


class Tokenizer(ABC):
    """The contract. `decode(encode(text)) == text` for every text that `encode` accepts."""

    @classmethod
    @abstractmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Learn a vocabulary of at most `vocab_size` tokens, special ones included."""

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
        """{text: id}; holds `<|endoftext|>`."""

    @property
    @abstractmethod
    def token_bytes(self) -> npt.NDArray[np.int64]:
        """(vocab_size,) int64: the UTF-8 bytes that each token stands for, 0 for special ones."""

    def encode(self, text: str) -> TokenIds:
        """Ids of one text, int64."""
        return self.encode_batch([text])[0]

    @property
    def end_of_text(self) -> int:
        return self.special_tokens[END_OF_TEXT]


class CharTokenizer(Tokenizer):
    """One token per character; encoding a character that training did not see is an error."""

    def __init__(self, characters: Sequence[str]) -> None:
        self.characters = sorted(characters)
        self._codes = np.array([ord(c) for c in self.characters], dtype=np.uint32)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int = 0) -> CharTokenizer:
        """`vocab_size` has no effect: the text decides."""
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
                "use other text, or a tokenizer that knows every character: data.tokenizer=bpe",
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


class BPETokenizer(Tokenizer):
    """Byte-level byte-pair encoding; every text can be encoded, nothing is unknown."""

    def __init__(self, tokenizer: hf.Tokenizer) -> None:
        # `<|endoftext|>` written in a text is ordinary text, never the border of a document.
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer

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
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer)

    def encode_batch(self, texts: Sequence[str]) -> list[TokenIds]:
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    def save(self, path: Path) -> None:
        write_text_atomic(path, self._tokenizer.to_str(pretty=False))

    @property
    def vocab_size(self) -> int:
        return self._tokenizer.get_vocab_size()

    @property
    def special_tokens(self) -> dict[str, int]:
        return {t.content: i for i, t in self._tokenizer.get_added_tokens_decoder().items()}

    @property
    def token_bytes(self) -> npt.NDArray[np.int64]:
        sizes = np.zeros(self.vocab_size, dtype=np.int64)
        for token, index in self._tokenizer.get_vocab(with_added_tokens=False).items():
            sizes[index] = len(token)  # the byte-level alphabet writes each byte as one character
        sizes[list(self.special_tokens.values())] = 0
        return sizes


TOKENIZERS: dict[str, type[Tokenizer]] = {"char": CharTokenizer, "bpe": BPETokenizer}


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Read the tokenizer that `save` wrote. Raises DataError for a missing, damaged or foreign file."""
    path = Path(path)
    content: Any = read_json(path, DataError, "prepare the dataset again")
    if not isinstance(content, dict):
        raise DataError(f"{path} is not a tokenizer")
    if content.get("type") == "char" and isinstance(content.get("characters"), str):
        return CharTokenizer(content["characters"])
    model = content.get("model")
    if isinstance(model, dict) and model.get("type") == "BPE":
        try:
            bpe = BPETokenizer(hf.Tokenizer.from_str(path.read_text(encoding="utf-8")))
        except Exception as error:  # the library raises nothing narrower
            raise DataError(f"{path} is not a valid BPE tokenizer: {error}") from error
        if END_OF_TEXT not in bpe.special_tokens:
            raise DataError(f"{path} has no special token {END_OF_TEXT}")
        return bpe
    raise DataError(f"{path} is of no tokenizer type known here: {', '.join(TOKENIZERS)}")
