"""What to show for a token: its part of a text, and a label in which nothing is invisible.

Works with `decode` alone, so with every tokenizer: those that drop a space at the start of a text,
and those whose tokens are bytes of a character.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from common.data.tokenizers import Tokenizer

_INCOMPLETE = "\ufffd"  # what `decode` writes for bytes that are no whole character
_VISIBLE = {" ": "␣", "\n": "↵", "\t": "⇥"}


def token_texts(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """The part of `tokenizer.decode(ids)` that each token adds; joined they are that text.

    A character of several tokens is added by its last one, the others add "", and so do special
    tokens.
    """
    ids = [int(i) for i in ids]
    texts: list[str] = []
    start = end = 0  # ids[start:end] is the text that is written, as context for what follows
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
    """The text of every token by itself, (vocab_size,); special ones have their name."""
    special = {index: name for name, index in tokenizer.special_tokens.items()}
    # Behind another token, because some tokenizers drop the space that a text begins with.
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
    """One line for token `index` with the text `text`: spaces and controls are made visible."""
    if text.strip(_INCOMPLETE) == "":
        return f"#{index}"  # bytes of a character, or nothing
    return "".join(_VISIBLE.get(c) or shown(c) for c in text)


def shown(text: str) -> str:
    """`text` as a page can show it: line ends stay, other controls and what turns the direction of
    text become visible, lone surrogates, which no file can hold, the replacement character."""
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
