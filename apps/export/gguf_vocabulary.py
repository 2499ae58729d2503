"""Convert a byte-level BPE tokenizer to GGUF: tokens, types, merges, the name of its pre-tokenizer."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from common.data.tokenizers import TiktokenTokenizer
from common.data.tokenizers.byte_level import to_letters
from common.data.tokenizers.patterns import GPT2
from common.errors import ModelError
from common.utils.files import read_json
from common.utils.logging import get_logger

# Token types of llama.cpp (llama_token_type).
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5

_HINT = "export a model trained with data.tokenizer=bpe, or use --format onnx"

# llama.cpp's names of pre-tokenizers by pattern.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_MODERN = (
    _CONTRACTIONS
    + r"|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITTERS = {
    GPT2: "gpt-2",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+": "gpt-2",
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s": "gpt-2",
    _MODERN % r"\p{N}": "qwen2",
    _MODERN % r"\p{N}{1,3}": "llama-bpe",
}


class SavedTokenizer(Protocol):
    """Protocol of tokenizers for the export, implemented by `common.data.tokenizers`."""

    @property
    def end_of_text(self) -> int: ...

    def save(self, path: Path) -> None: ...


@dataclass(frozen=True)
class Vocabulary:
    """Args:
    tokens: by id, in the byte-level alphabet, each byte one printable character.
    types: by id: NORMAL, CONTROL (special), USER_DEFINED (found in text) or UNUSED.
    merges: "left right", in order of application.
    splitter: llama.cpp's name of the pre-tokenizer.
    end_of_text: id of the token between documents, which also precedes the first.
    """

    tokens: list[str]
    types: list[int]
    merges: list[str]
    splitter: str
    end_of_text: int

    def padded(self, size: int) -> Vocabulary:
        """Pad with unused tokens up to `size`, the rows of the model's embedding."""
        missing = size - len(self.tokens)
        if missing < 0:
            raise ModelError(
                f"the tokenizer has {len(self.tokens)} tokens, the model only {size}",
                "export the model with the tokenizer used in training",
            )
        fillers = [f"[PAD{index}]" for index in range(len(self.tokens), size)]
        types = [*self.types, *[UNUSED] * missing]
        return Vocabulary(
            [*self.tokens, *fillers], types, self.merges, self.splitter, self.end_of_text
        )


def vocabulary_of(tokenizer: SavedTokenizer) -> Vocabulary:
    """Read the output of `tokenizer.save`, a byte-level BPE `tokenizer.json`.

    Raises ModelError for other kinds: a vocabulary of characters, or one with a normalizer.
    """
    if isinstance(tokenizer, TiktokenTokenizer):
        return vocabulary_of_ranks(
            tokenizer.ranks, tokenizer.pattern, tokenizer.special_tokens, tokenizer.end_of_text
        )
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "tokenizer.json"
        tokenizer.save(path)
        content = read_json(path, ModelError)
    if content.get("type") == "pretrained":
        content = content["tokenizer"]
    model = content.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE":
        kind = content.get("type") or (model or {}).get("type")
        raise ModelError(f"GGUF has no tokenizer of the type '{kind}', only byte-level BPE", _HINT)
    _check_normalizer(content.get("normalizer"))
    splitter = _splitter(content)
    if bool(model.get("ignore_merges")) != (splitter == "llama-bpe"):
        raise ModelError(f"llama.cpp's '{splitter}' applies merges in another order", _HINT)
    added: dict[int, dict[str, int]] = {CONTROL: {}, USER_DEFINED: {}}
    for token in content.get("added_tokens", []):
        kind = CONTROL if token["special"] else USER_DEFINED
        added[kind][token["content"]] = token["id"]
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    return _vocabulary({NORMAL: model["vocab"], **added}, merges, splitter, tokenizer.end_of_text)


def vocabulary_of_ranks(
    ranks: Mapping[bytes, int], pattern: str, special: Mapping[str, int], end_of_text: int
) -> Vocabulary:
    """Convert a tiktoken encoding (mergeable ranks, pattern and special tokens)."""
    vocab = {to_letters(token): rank for token, rank in ranks.items()}
    merges = [" ".join(map(to_letters, pair)) for pair in merges_of_ranks(ranks)]
    return _vocabulary({NORMAL: vocab, CONTROL: special}, merges, _named(pattern), end_of_text)


def _vocabulary(
    by_type: Mapping[int, Mapping[str, int]], merges: list[str], splitter: str, end_of_text: int
) -> Vocabulary:
    size = 1 + max(index for entries in by_type.values() for index in entries.values())
    tokens = [f"[PAD{index}]" for index in range(size)]  # for unused ids
    types = [UNUSED] * size
    for kind, entries in by_type.items():
        for token, index in entries.items():
            tokens[index], types[index] = token, kind
    if len(set(tokens)) != size:
        raise ModelError("the tokenizer has two tokens with the same text", _HINT)
    return Vocabulary(tokens, types, merges, splitter, end_of_text)


def merges_of_ranks(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Recover the merge of each multi-byte token, in the order of learning.

    A token is the concatenation of the two parts that earlier merges leave of its bytes (Sennrich
    et al. 2016, "Neural Machine Translation of Rare Words with Subword Units", algorithm 1).
    """
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) > 1:
            parts = _merge(token, ranks, below=rank)
            if len(parts) != 2:
                raise ModelError(f"the token {token!r} is not a merge of two earlier ones", _HINT)
            merges.append((parts[0], parts[1]))
    return merges


def _merge(token: bytes, ranks: Mapping[bytes, int], below: int) -> list[bytes]:
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 1:
        joined = [ranks.get(a + b, below) for a, b in pairwise(parts)]
        best = min(range(len(joined)), key=joined.__getitem__)
        if joined[best] >= below:
            break
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts


def _check_normalizer(normalizer: Mapping[str, Any] | None) -> None:
    if normalizer is None:
        return
    if normalizer.get("type") != "NFC":
        raise ModelError("llama.cpp does not normalise text, but this tokenizer does", _HINT)
    get_logger("export").warning(
        "the tokenizer composes characters (NFC), llama.cpp does not: pass it composed text"
    )


def _splitter(content: Mapping[str, Any]) -> str:
    """llama.cpp's name of the pre-tokenizer of a `tokenizer.json`."""
    steps = content.get("pre_tokenizer") or {}
    steps = steps["pretokenizers"] if steps.get("type") == "Sequence" else [steps]
    byte_level = steps[-1]
    if byte_level.get("type") != "ByteLevel" or byte_level.get("add_prefix_space"):
        raise ModelError("the tokenizer is not byte-level, or prepends a space to texts", _HINT)
    if len(steps) == 1 and byte_level.get("use_regex", True):
        return "gpt-2"
    if len(steps) == 2 and not byte_level.get("use_regex", True):
        split = steps[0]
        if (split.get("type"), split.get("behavior"), split.get("invert")) == (
            *("Split", "Isolated"),
            False,
        ):
            return _named(split.get("pattern", {}).get("Regex", ""))
    raise ModelError(f"llama.cpp has no pre-tokenizer equal to {json.dumps(steps)}", _HINT)


def _named(pattern: str) -> str:
    if pattern not in SPLITTERS:
        raise ModelError(f"llama.cpp does not support the pattern {pattern!r}", _HINT)
    return SPLITTERS[pattern]
