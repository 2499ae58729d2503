"""Pretrained tokenizers: a tokenizer.json in Hugging Face format, of any kind."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers as hf

from common.data.tokenizers.base import (
    END_OF_TEXT,
    TokenIds,
    Tokenizer,
    check_encodable,
    engine_errors,
    is_panic,
    last_word_border,
)
from common.data.tokenizers.fast_bpe import FastBPE
from common.data.tokenizers.pipeline import Pipeline
from common.errors import DataError
from common.utils.files import write_text_atomic

# Common end-of-text tokens, if tokenizer_config.json does not name one.
_ENDS = (
    END_OF_TEXT,
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<|im_end|>",
    "[SEP]",
    "<|end▁of▁sentence|>",
)


class PretrainedTokenizer(Tokenizer):
    """The ids of every text are those of `tokenizers`, for the whole text and deterministic.

    Special tokens are never added, and parsed from text only if the model itself produces them (see
    `loses`). Truncation, padding and BPE dropout are ignored, so that preparation, prompts and
    exports encode alike.
    """

    kind = "pretrained"

    def __init__(self, tokenizer: hf.Tokenizer, end_of_text: str | None = None) -> None:
        tokenizer.encode_special_tokens = True
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.post_processor = None
        if isinstance(tokenizer.model, hf.models.BPE):
            tokenizer.model.dropout = None
        self.tokenizer = tokenizer
        self._vocab: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
        self._content: dict[str, Any] = json.loads(tokenizer.to_str())
        self._pipeline = Pipeline(self._content)
        known = (
            [end_of_text]
            if end_of_text
            else [name for name in _ENDS if name in self.special_tokens]
        )
        if not known or known[0] not in self.special_tokens:
            raise DataError(
                f"this tokenizer has no special token {end_of_text or END_OF_TEXT} or similar",
                f"it has: {', '.join(self.special_tokens) or 'none'}",
            )
        self._end = known[0]

    def encode_batch(self, texts: Sequence[str]) -> list[TokenIds]:
        if self._fast is not None:
            return [self._encode_fast(self._fast, text) for text in texts]
        return self._encode(texts)

    def _encode(self, texts: Sequence[str]) -> list[TokenIds]:
        check_encodable(texts)
        with engine_errors("encoding", "use another tokenizer, or repair its tokenizer.json"):
            encodings = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]

    def _encode_fast(self, fast: FastBPE, text: str) -> TokenIds:
        try:
            return fast.encode(text)
        except BaseException as error:  # a million spaces are too many for its regular expressions
            if not (isinstance(error, ValueError) or is_panic(error)):
                raise
            return self._encode([text])[0]

    @cached_property
    def _fast(self) -> FastBPE | None:
        return FastBPE.of(self._content)

    def decode(self, ids: Sequence[int]) -> str:
        with engine_errors("decoding"):
            return self.tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    def save(self, path: Path) -> None:
        content = {"type": self.kind, "end_of_text": self._end, "tokenizer": self._content}
        write_text_atomic(path, json.dumps(content))

    @cached_property
    def vocab_size(self) -> int:
        return max(self._vocab.values()) + 1

    @cached_property
    def _special_tokens(self) -> dict[str, int]:
        added = self.tokenizer.get_added_tokens_decoder().items()
        return {token.content: i for i, token in added if token.special}

    @property
    def special_tokens(self) -> dict[str, int]:
        return dict(self._special_tokens)

    @property
    def end_of_text(self) -> int:
        return self._special_tokens[self._end]

    @property
    def token_bytes(self) -> npt.NDArray[np.int64]:
        return self._token_bytes.copy()

    @cached_property
    def _token_bytes(self) -> npt.NDArray[np.int64]:
        sizes = np.zeros(self.vocab_size, dtype=np.int64)
        for token, index in self._vocab.items():
            sizes[index] = self._pipeline.bytes_of(token)
        for index, added in self.tokenizer.get_added_tokens_decoder().items():
            sizes[index] = 0 if added.special else len(added.content.encode())
        return sizes

    @property
    def loses(self) -> str:
        return "; ".join(self._losses)

    @cached_property
    def _losses(self) -> list[str]:
        return self._pipeline.losses()

    def last_border(self, text: str) -> int:
        return last_word_border(text) if self._fast is not None else 0

    def is_unknown(self, ids: TokenIds) -> npt.NDArray[np.bool_]:
        unknown = np.zeros(self.vocab_size, dtype=np.bool_)
        for token, index in self._vocab.items():
            unknown[index] = self._pipeline.is_byte(token) or token == self._pipeline.unknown
        return unknown[ids]
