"""Encode with tiktoken's engine and vocabularies of tokenizers: same ids, several times as fast."""

from __future__ import annotations

import json
from importlib.util import find_spec
from typing import Any

import numpy as np
import tokenizers as hf

from common.data.tokenizers.base import TokenIds
from common.data.tokenizers.byte_level import byte_letters
from common.data.tokenizers.patterns import GPT2

# The one supported pipeline, key by key; unknown keys of later versions disable it.
_PIPELINE = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "normalizer": None,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
    "post_processor": None,
    "model": {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "byte_fallback": False,
        "ignore_merges": False,
    },
}
# Both engines must encode it equally: all classes of the pattern, and letters, digits and symbols
# of the latest Unicode versions, which the two regular expression engines may not know.
_PROBE = (
    "They'll don't 'S 're've''s I'd\u2019s x=y+1; f(x)[0]\n\n\n\t\tif a  b   c    \r\n \r\n\r \n \n"
    " \x00\x1c\x1f\x7f\x85\xa0\xad a\xa0b\u1680\u180e\u2000\u200b\u2028\u2029\u202f\u205f\u2060\u3000\ufeffa "
    "12 1234567 \u00b2\u2460\u0663\u0967\u216b\u3007 na\u00efve e\u0301 \u01c5\u00aa\u02b0 \u0915\u094d\u0937\u093f "
    "\u5317\u4eac\u3068 \uac00\u1100\u1161 \U0001f642\U0001f469\u200d\U0001f467 \ufffd\uffff\U0010ffff \ue000 \ufb01 "
    "<|endoftext|> <|x|> \u0120\u2581 ## </s> --- ***** 'lls 's't\n"
    " \u1bff\U00010ec0a \U0001df00a1 \U00010f70 \U0001e4d0a \U00011240 \U0002ebf0a \U000105c0a \U00010d40a \U0001ccf0a "
    "\U00010940a \U00011de0a \ua7ceb \U000323b0a \U0001e6c0a       "
)


class FastBPE:
    """Encodes text with byte-level BPE and releases the GIL, so that threads run in parallel."""

    def __init__(self, ranks: dict[bytes, int]) -> None:
        import tiktoken

        # Without any special token it would search for the empty string at every letter; this one
        # is never allowed, so it has no effect.
        never = {"<|never|>": max(ranks.values()) + 1}
        self._encoding = tiktoken.Encoding(
            "bpe", pat_str=GPT2, mergeable_ranks=ranks, special_tokens=never
        )

    @classmethod
    def of(cls, content: dict[str, Any]) -> FastBPE | None:
        """Create from the canonical description of a tokenizer; None if tiktoken is not installed or might differ.

        The description implies equal ids; the probe checks it for the installed versions.
        """
        if not (find_spec("tiktoken") and _is_plain(content)):
            return None
        reference = hf.Tokenizer.from_str(json.dumps(content))
        reference.encode_special_tokens = True
        ranks = _ranks(content, reference)
        if ranks is None:
            return None
        fast = cls(ranks)
        probe = _PROBE + "a".join(token["content"] for token in content["added_tokens"])
        expected = reference.encode(probe, add_special_tokens=False).ids
        return fast if fast.encode(probe).tolist() == expected else None

    def encode(self, text: str) -> TokenIds:
        """(tokens,) int64"""
        return self._encoding.encode_to_numpy(text, disallowed_special=()).astype(np.int64)


def _is_plain(content: dict[str, Any]) -> bool:
    """Whether the description equals `_PIPELINE` except for vocabulary and special tokens."""
    splitter, model = content["pre_tokenizer"] or {}, content["model"]
    found = {key: value for key, value in content.items() if key not in ("added_tokens", "decoder")}
    found["pre_tokenizer"] = {k: v for k, v in splitter.items() if k != "trim_offsets"}
    no_effect = ("vocab", "merges", "fuse_unk")  # no unknown token to fuse
    # GPT-2's own file writes empty prefixes and suffixes.
    found["model"] = {k: None if v == "" else v for k, v in model.items() if k not in no_effect}
    return found == _PIPELINE and all(token["special"] for token in content["added_tokens"])


def _ranks(content: dict[str, Any], reference: hf.Tokenizer) -> dict[bytes, int] | None:
    """Return {bytes of a token: id}, or None if tiktoken might give other ids than tokenizers.
    tiktoken joins the neighbours whose joint bytes have the lowest id, tokenizers those of the
    earliest merge.

    Both agree if ids follow the order of the merges and every token's bytes encode to that token:
    merges inside a token's bytes do not depend on the surrounding text.
    """
    vocab: dict[str, int] = content["model"]["vocab"]
    special = {token["content"] for token in content["added_tokens"]}
    merged = ["".join(merge) for merge in content["model"]["merges"]]
    order = [vocab[token] for token in merged]
    letters = [token for token in vocab if len(token) == 1 and token not in special]
    ordered = order == sorted(set(order))
    complete = {*letters} == {*byte_letters()} and {*letters, *merged, *special} >= vocab.keys()
    if not (ordered and complete):
        return None
    for token in merged:
        if [piece.id for piece in reference.model.tokenize(token)] != [vocab[token]]:
            return None
    byte_of = {letter: byte for byte, letter in enumerate(byte_letters())}
    return {bytes(byte_of[c] for c in token): vocab[token] for token in [*letters, *merged]}
