"""OpenAI's encodings (gpt2, cl100k_base, o200k_base ...), through tiktoken."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.data.tokenizers.base import (
    END_OF_TEXT,
    TokenIds,
    Tokenizer,
    check_encodable,
    check_ids,
    engine_errors,
    is_panic,
    last_word_border,
)
from common.data.tokenizers.byte_level import tokenizer_of_ranks
from common.data.tokenizers.patterns import KNOWN
from common.errors import DataError, did_you_mean
from common.utils.files import write_text_atomic
from common.utils.packages import require


class TiktokenTokenizer(Tokenizer):
    """An encoding with its full vocabulary, so that a saved one needs neither cache nor network."""

    kind = "tiktoken"

    def __init__(
        self, name: str, pattern: str, ranks: dict[bytes, int], special_tokens: dict[str, int]
    ) -> None:
        self.name, self.pattern, self.ranks = name, pattern, ranks
        self._special_tokens = special_tokens
        check_ids([*ranks.values(), *special_tokens.values()])
        self._encoding: Any = require("tiktoken", "tokenizers").Encoding(
            name, pat_str=pattern, mergeable_ranks=ranks, special_tokens=special_tokens
        )

    @classmethod
    def named(cls, name: str) -> TiktokenTokenizer:
        """Load `gpt2`, `cl100k_base` ... Raises DataError if it is not cached and cannot be downloaded."""
        tiktoken = require("tiktoken", "tokenizers")
        try:
            encoding = tiktoken.get_encoding(name)
        except ValueError as error:
            raise DataError(
                f"tiktoken has no encoding '{name}'",
                did_you_mean(name, tiktoken.list_encoding_names()),
            ) from error
        except OSError as error:  # requests' errors are OSErrors
            raise DataError(
                f"the encoding '{name}' is not in tiktoken's cache and cannot be downloaded: "
                f"{type(error).__name__}",
                "run it once with the network, or copy the cache of another machine and set "
                "TIKTOKEN_CACHE_DIR",
            ) from error
        return cls(
            name,
            encoding._pat_str,
            encoding._mergeable_ranks,
            {END_OF_TEXT: encoding.eot_token},
        )

    def encode_batch(self, texts: Sequence[str]) -> list[TokenIds]:
        check_encodable(texts)
        return [self._encode(text) for text in texts]

    def _encode(self, text: str) -> TokenIds:
        try:
            ids: TokenIds = self._encoding.encode_to_numpy(text, disallowed_special=())
            return ids.astype(np.int64)
        except BaseException as error:  # a million spaces are too many for its regular expressions
            if not (isinstance(error, ValueError) or is_panic(error)):
                raise
        with engine_errors("encoding"):
            found = self._other_engine.encode(text, add_special_tokens=False)
        return np.array(found.ids, dtype=np.int64)

    @cached_property
    def _other_engine(self) -> Any:
        """The encoding in tokenizers, which takes seconds to load and gives the same ids."""
        engine = tokenizer_of_ranks(self.ranks, self.pattern, self._special_tokens)
        engine.encode_special_tokens = True
        return engine

    def decode(self, ids: Sequence[int]) -> str:
        special = set(self._special_tokens.values())
        text: str = self._encoding.decode([int(i) for i in ids if i not in special])
        return text

    def save(self, path: Path) -> None:
        tokens = [
            base64.b64encode(token).decode()
            for token, _ in sorted(self.ranks.items(), key=lambda item: item[1])
        ]
        content: dict[str, Any] = {
            "type": self.kind,
            "name": self.name,
            "pattern": self.pattern,
            "special_tokens": self._special_tokens,
            "tokens": tokens,
        }
        ids: list[int] = sorted(self.ranks.values())
        if ids != [*range(len(tokens))]:
            content["ranks"] = ids
        write_text_atomic(path, json.dumps(content))

    @classmethod
    def from_content(cls, content: dict[str, Any]) -> TiktokenTokenizer:
        """Read the output of `save`. Raises KeyError, TypeError or ValueError for anything else."""
        tokens = [base64.b64decode(token, validate=True) for token in content["tokens"]]
        ids = [int(rank) for rank in content.get("ranks", range(len(tokens)))]
        special = {str(text): int(i) for text, i in content["special_tokens"].items()}
        ranks = dict(zip(tokens, ids, strict=True))
        missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
        if missing or len(ranks) < len(tokens) or END_OF_TEXT not in special:
            raise ValueError("tokens are missing or duplicated")
        return cls(str(content["name"]), str(content["pattern"]), ranks, special)

    @property
    def vocab_size(self) -> int:
        return max(*self.ranks.values(), *self._special_tokens.values()) + 1

    @property
    def special_tokens(self) -> dict[str, int]:
        return dict(self._special_tokens)

    @property
    def token_bytes(self) -> npt.NDArray[np.int64]:
        return self._token_bytes.copy()

    @cached_property
    def _token_bytes(self) -> npt.NDArray[np.int64]:
        sizes = np.zeros(self.vocab_size, dtype=np.int64)
        for token, rank in self.ranks.items():
            sizes[rank] = len(token)
        return sizes

    @property
    def loses(self) -> str:
        return "" if self.pattern in KNOWN else "text that its pattern does not match is dropped"

    def last_border(self, text: str) -> int:
        return last_word_border(text) if self.pattern in KNOWN else 0
