"""The regular expressions that cut text into words before byte-pair merges, each read and understood.

Every one of them matches every character, and no match of theirs spans the place before a space that
follows no space, or before a line end that follows a letter or digit (`last_word_border`).
"""

from __future__ import annotations

from common.errors import DataError

# How GPT-2 cuts text into words (its encoder.py), and `ByteLevel` of tokenizers too.
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
    """The same pattern for tokenizers, whose engine reads two things otherwise than tiktoken's.

    There `$` also matches before a line end, and `{1,3}+` repeats instead of taking all at once.
    Raises DataError for a pattern that is not one of `KNOWN`.
    """
    if pattern not in KNOWN:
        raise DataError(
            f"nothing is known of the pattern {pattern!r} that this encoding cuts text with",
            "take an encoding of OpenAI's, or train a tokenizer: data.tokenizer=bpe",
        )
    return pattern.replace(r"\p{N}{1,3}+", r"(?>\p{N}{1,3})").replace("$", r"\z")
