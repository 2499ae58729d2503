"""The text of a page, an element per token."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from apps.analysis.tokens import shown, token_texts
from common.data.tokenizers import Tokenizer


def text_html(
    tokenizer: Tokenizer, ids: Sequence[int], words: Sequence[str], classes: Sequence[str] = ()
) -> str:
    """The text of `ids` as HTML.

    Args:
        words: the text of every token of the vocabulary, from `vocabulary_texts`.
        classes: of the element of each token; none by default.
    """
    special = set(tokenizer.special_tokens.values())
    spans = []
    for place, text in enumerate(token_texts(tokenizer, ids)):
        names = f"token {classes[place]}" if classes else "token"
        spans.append(f'<span class="{names}">{_content(text, ids[place], words, special)}</span>')
    return f'<div class="text">{"".join(spans)}</div>'


def _content(text: str, index: int, words: Sequence[str], special: set[int]) -> str:
    """The text of a token, with symbols for invisible characters."""
    if index in special:
        return f'<span class="sign">{escape(words[index])}</span>'
    if not text:  # part of a character that a later token completes
        return '<span class="sign">·</span>'
    signs = {"\n": '<span class="sign">↵</span>\n', "\t": '<span class="sign">⇥</span>\t'}
    return "".join(signs.get(c, escape(c)) for c in shown(text))
