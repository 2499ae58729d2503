"""tiktoken's engine for the vocabularies of tokenizers: the same ids, several times as fast."""

from __future__ import annotations

import json
from importlib.util import find_spec
from typing import Any

import numpy as np
import tokenizers as hf

from common.data.tokenizers.base import TokenIds
from common.data.tokenizers.byte_level import byte_letters

# How GPT-2 cuts text into words (its encoder.py), and `ByteLevel` of tokenizers too.
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


class FastBPE:
    """Encodes text with byte-level BPE, without the interpreter's lock: threads work side by side."""

    def __init__(self, ranks: dict[bytes, int]) -> None:
        import tiktoken

        # Without any special token it would look for the empty text, at every letter; this one is
        # never allowed, so it has no effect.
        never = {"<|never|>": max(ranks.values()) + 1}
        self._encoding = tiktoken.Encoding(
            "bpe", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=never
        )

    @classmethod
    def of(cls, content: dict[str, Any]) -> FastBPE | None:
        """For a tokenizer.json; None where tiktoken is not installed or could give other ids."""
        ranks = _ranks(content) if find_spec("tiktoken") else None
        return None if ranks is None else cls(ranks)

    def encode(self, text: str) -> TokenIds:
        """(tokens,) int64"""
        return self._encoding.encode_to_numpy(text, disallowed_special=()).astype(np.int64)


def _ranks(content: dict[str, Any]) -> dict[bytes, int] | None:
    """{bytes of a token: its id}, or None where tiktoken could give other ids than tokenizers.

    tiktoken joins the neighbours whose joint bytes have the lowest id, tokenizers those of the earliest
    merge. That is the same when ids follow the order of the merges and every token, as bytes, is
    encoded as itself: what is joined inside of a token's bytes does not depend on what is around them.
    """
    model, splitter = content["model"], content["pre_tokenizer"]
    plain = (
        model["type"] == "BPE"
        and content["normalizer"] is None
        and not any(model.get(key) for key in ("dropout", "unk_token", "byte_fallback"))
        and not model.get("continuing_subword_prefix")
        and not model.get("end_of_word_suffix")
        and not model.get("ignore_merges")
        and splitter is not None
        and splitter["type"] == "ByteLevel"
        and not splitter["add_prefix_space"]
        and splitter.get("use_regex", True)
    )
    if not plain:
        return None
    vocab: dict[str, int] = model["vocab"]
    special = {token["content"] for token in content["added_tokens"]}
    merged = ["".join(m) if isinstance(m, list) else m.replace(" ", "") for m in model["merges"]]
    order = [vocab[token] for token in merged]
    letters = [token for token in vocab if len(token) == 1 and token not in special]
    ordered = order == sorted(set(order))
    complete = len(letters) == 256 and {*letters, *merged, *special} >= vocab.keys()
    if not (ordered and complete):
        return None
    bpe = hf.Tokenizer.from_str(json.dumps(content | {"added_tokens": []})).model
    for token in merged:
        if [piece.id for piece in bpe.tokenize(token)] != [vocab[token]]:
            return None
    byte_of = {letter: byte for byte, letter in enumerate(byte_letters())}
    return {bytes(byte_of[c] for c in token): vocab[token] for token in [*letters, *merged]}
