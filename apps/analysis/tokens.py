"""Display text of tokens: their part of a text, and labels with visible control characters.

Uses only `decode`, so it works with every tokenizer, including those that drop a leading space and
those with tokens for parts of a character.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from common.data.tokenizers import Tokenizer

_INCOMPLETE = "\ufffd"  # output of `decode` for an incomplete character
_VISIBLE = {" ": "␣", "\n": "↵", "\t": "⇥"}


def token_texts(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """Split `tokenizer.decode(ids)` into the part of each token.

    A character of several tokens belongs to its last one; the others, and special tokens, have "".
    """
    ids = [int(i) for i in ids]
    texts: list[str] = []
    start = end = 0  # ids[start:end] are context for the next token
    for index in range(len(ids)):
        before = tokenizer.decode(ids[start:end])
        after = tokenizer.decode(ids[start : index + 1])
        if after.endswith(_INCOMPLETE) and index + 1 < len(ids):
            texts.append("")
            continue
        texts.append(after[len(before) :])
        if after != before:
            start, end = end, index + 1
    return texts


def vocabulary_texts(tokenizer: Tokenizer) -> list[str]:
    """The text of every single token, (vocab_size,); special tokens have their name."""
    special = {index: name for name, index in tokenizer.special_tokens.items()}
    # After another token, because some tokenizers drop a leading space.
    anchor = next(
        (i for i in range(tokenizer.vocab_size) if i not in special and _is_whole(tokenizer, i)),
        None,
    )
    before = "" if anchor is None else tokenizer.decode([anchor])
    texts = []
    for index in range(tokenizer.vocab_size):
        text = tokenizer.decode([index] if anchor is None else [anchor, index])
        texts.append(special.get(index, text[len(before) :]))
    return texts


def _is_whole(tokenizer: Tokenizer, index: int) -> bool:
    text = tokenizer.decode([index])
    return text != "" and _INCOMPLETE not in text


def label(text: str, index: int) -> str:
    """One-line label of token `index` with the text `text`; spaces and control characters are visible."""
    if text.strip(_INCOMPLETE) == "":
        return f"#{index}"  # part of a character, or empty
    return "".join(_VISIBLE.get(c) or shown(c) for c in text)


def shown(text: str) -> str:
    """`text` for a page: line ends are kept, other control and bidirectional characters become
    visible, lone surrogates become the replacement character."""
    return "".join(c if c in "\n\t" else _shown_character(c) for c in text)


def _shown_character(character: str) -> str:
    category, code = unicodedata.category(character), ord(character)
    if category == "Cs":
        return _INCOMPLETE
    if category == "Cc":
        return chr(0x2400 + code) if code < 0x20 else f"⟨{code:02X}⟩"
    turns = unicodedata.bidirectional(character) in (
        *("LRE", "RLE", "LRO", "RLO", "PDF"),
        *("LRI", "RLI", "FSI", "PDI"),
    )
    return f"⟨U+{code:04X}⟩" if turns or category in ("Zl", "Zp") else character
