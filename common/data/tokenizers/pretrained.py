"""A tokenizer of somebody else's: a tokenizer.json of Hugging Face's format, of any kind."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers as hf

from common.data.tokenizers.base import END_OF_TEXT, TokenIds, Tokenizer, last_word_border
from common.data.tokenizers.fast_bpe import FastBPE
from common.errors import DataError
from common.utils.files import write_text_atomic

# What models end a document with, where their tokenizer_config.json does not say.
_ENDS = (
    END_OF_TEXT,
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<|im_end|>",
    "[SEP]",
    "<|end▁of▁sentence|>",
)
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


class PretrainedTokenizer(Tokenizer):
    """Whatever special tokens it has are never read from text, and never added."""

    kind = "pretrained"

    def __init__(self, tokenizer: hf.Tokenizer, end_of_text: str | None = None) -> None:
        tokenizer.encode_special_tokens = True
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.tokenizer = tokenizer
        self._content: dict[str, Any] = json.loads(tokenizer.to_str())
        known = (
            [end_of_text]
            if end_of_text
            else [name for name in _ENDS if name in self.special_tokens]
        )
        if not known or known[0] not in self.special_tokens:
            raise DataError(
                f"this tokenizer has no special token {end_of_text or END_OF_TEXT}, or the like",
                f"it has: {', '.join(self.special_tokens) or 'none'}",
            )
        self._end = known[0]

    def encode_batch(self, texts: Sequence[str]) -> list[TokenIds]:
        if self._fast is not None:
            return [self._fast.encode(text) for text in texts]
        encodings = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]

    @cached_property
    def _fast(self) -> FastBPE | None:
        return FastBPE.of(self._content)

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    def save(self, path: Path) -> None:
        content = {"type": self.kind, "end_of_text": self._end, "tokenizer": self._content}
        write_text_atomic(path, json.dumps(content))

    @property
    def vocab_size(self) -> int:
        return max(self.tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def special_tokens(self) -> dict[str, int]:
        added = self.tokenizer.get_added_tokens_decoder().items()
        return {token.content: i for i, token in added if token.special}

    @property
    def end_of_text(self) -> int:
        return self.special_tokens[self._end]

    @property
    def token_bytes(self) -> npt.NDArray[np.int64]:
        """Exact for byte-level vocabularies and for SentencePiece's; of others, the bytes that are shown."""
        return self._token_bytes.copy()

    @cached_property
    def _token_bytes(self) -> npt.NDArray[np.int64]:
        sizes = np.zeros(self.vocab_size, dtype=np.int64)
        added = {token.content for token in self.tokenizer.get_added_tokens_decoder().values()}
        for token, index in self.tokenizer.get_vocab(with_added_tokens=True).items():
            if self._is_byte_level and token not in added:
                sizes[index] = len(token)  # a character for each byte
            elif _BYTE.fullmatch(token):
                sizes[index] = 1
            else:
                sizes[index] = len(token.replace("▁", " ").removeprefix("##").encode())
        sizes[list(self.special_tokens.values())] = 0
        return sizes

    @cached_property
    def _is_byte_level(self) -> bool:
        return _mentions(self._content["decoder"], "ByteLevel")

    @property
    def loses(self) -> str:
        if self._content["normalizer"] is not None:
            return f"its normalization ({self._content['normalizer']['type']}) may change the text"
        if not self._is_byte_level:
            return "spaces, and characters that its vocabulary lacks, may come back changed"
        return ""

    def last_border(self, text: str) -> int:
        return last_word_border(text) if self._fast is not None else 0

    def is_unknown(self, ids: TokenIds) -> npt.NDArray[np.bool_]:
        model = self._content["model"]
        unknown = np.zeros(self.vocab_size, dtype=np.bool_)
        for token, index in self.tokenizer.get_vocab(with_added_tokens=True).items():
            unknown[index] = bool(_BYTE.fullmatch(token)) or token == model.get("unk_token")
        if isinstance(model.get("unk_id"), int):
            unknown[model["unk_id"]] = True
        return unknown[ids]


def _mentions(part: Any, kind: str) -> bool:
    """Whether a part of a tokenizer.json is of this kind, or a sequence that holds one."""
    if isinstance(part, dict):
        return part.get("type") == kind or any(_mentions(value, kind) for value in part.values())
    return isinstance(part, list) and any(_mentions(value, kind) for value in part)
