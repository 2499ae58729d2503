"""Byte-level BPE in the notation of tokenizer.json and GGUF: a printable character for each byte."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import tokenizers as hf

from common.data.tokenizers.patterns import for_oniguruma


@cache
def byte_letters() -> tuple[str, ...]:
    """The character of each byte: itself if printable, else the next from U+0100 on.

    GPT-2's table (Radford et al. 2019), used by byte-level vocabularies since.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return tuple(chr(byte if byte in printable else next(others)) for byte in range(256))


def to_letters(token: bytes) -> str:
    """The bytes of a token, each as its printable character."""
    letters = byte_letters()
    return "".join(letters[byte] for byte in token)


def tokenizer_of_ranks(
    ranks: Mapping[bytes, int], pattern: str, special_tokens: Mapping[str, int]
) -> hf.Tokenizer:
    """A tiktoken encoding as a tokenizer of the tokenizers library: the same ids of every text.

    tiktoken joins any two neighbours whose bytes are a token, lowest id first. So here each token
    is merged from all pairs that it can be split into, not only the one found in training.
    Raises DataError for a pattern that tokenizers might interpret differently.
    """
    pairs = sorted(
        (rank, ranks[token[:cut]], ranks[token[cut:]], token, cut)
        for token, rank in ranks.items()
        for cut in range(1, len(token))
        if token[:cut] in ranks and token[cut:] in ranks
    )
    found = hf.Tokenizer(
        hf.models.BPE(
            vocab={to_letters(token): rank for token, rank in ranks.items()} | {**special_tokens},
            merges=[(to_letters(token[:cut]), to_letters(token[cut:])) for *_, token, cut in pairs],
            ignore_merges=True,  # a word that is a token is that token
        )
    )
    found.pre_tokenizer = hf.pre_tokenizers.Sequence(
        [
            hf.pre_tokenizers.Split(hf.Regex(for_oniguruma(pattern)), "isolated"),
            hf.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    found.decoder = hf.decoders.ByteLevel()
    found.add_special_tokens([*sorted(special_tokens, key=special_tokens.__getitem__)])
    return found
