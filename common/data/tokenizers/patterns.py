"""The known regular expressions that split text into words before byte-pair merges.

Each matches every character, and no match spans a border of `last_word_border`: before a space not
preceded by a space, or before a line end after a letter or digit.
"""

from __future__ import annotations

from common.errors import DataError

# Word pattern of GPT-2 (its encoder.py), also of `ByteLevel` in tokenizers.
GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_MODERN = r"|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]%s[\p{Ll}\p{Lm}\p{Lo}\p{M}]%s"
    + _CONTRACTIONS
    + "?|"
)
O200K = (
    (_CASED % ("*", "+"))
    + (_CASED % ("+", "*"))
    + r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
KNOWN = {
    GPT2,
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?[\p{L}]+| ?[\p{N}]+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    _CONTRACTIONS + _MODERN % r"\p{N}",
    _CONTRACTIONS + _MODERN % r"\p{N}{1,3}",
    CL100K,
    O200K,
}


def for_oniguruma(pattern: str) -> str:
    """Translate a pattern for tokenizers, whose engine differs from tiktoken's in two ways.

    There `$` also matches before a line end, and `{1,3}+` repeats instead of being possessive.
    Raises DataError for a pattern that is not in `KNOWN`.
    """
    if pattern not in KNOWN:
        raise DataError(
            f"unknown word pattern {pattern!r} of this encoding",
            "use an encoding of OpenAI, or train a tokenizer: data.tokenizer=bpe",
        )
    return pattern.replace(r"\p{N}{1,3}+", r"(?>\p{N}{1,3})").replace("$", r"\z")
