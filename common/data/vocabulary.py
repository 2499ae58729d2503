"""Train the vocabulary of a tokenizer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from common.data.documents import Corpus, Document, reading_progress
from common.data.tokenizers import TRAINABLE, Tokenizer
from common.data.tokenizers.base import last_word_border

_MOST_CHARACTERS = 100_000_000  # more text hardly changes a vocabulary
_LONGEST_WORD = 1_000_000  # characters; a longer one may be cut
# Characters: the trainer counts texts in parallel. Endless words are cut there too, since training
# time grows with the square of the word length (12 s for 100,000 spaces, 0.2 s for 10,000).
_TEXT_CHARACTERS = 10_000


def learn_vocabulary(kind: str, vocab_size: int, corpora: Sequence[Corpus]) -> Tokenizer:
    """Train a tokenizer on the first 100 million characters, an equal share of each corpus.

    Args:
        kind: one of `TRAINABLE`; `char` reads all text.
        vocab_size: maximum number of tokens, including special ones.
    """
    limit = math.inf if kind == "char" else _MOST_CHARACTERS / len(corpora)
    names = " + ".join(corpus.name for corpus in corpora)
    with reading_progress(f"preparing {names}: learning the vocabulary") as watch:
        texts = (
            text for corpus in corpora for text in training_texts(watch(corpus.documents()), limit)
        )
        return TRAINABLE[kind].train(texts, vocab_size)


def training_texts(documents: Iterator[Document], limit: float = math.inf) -> Iterator[str]:
    """Yield the texts of the first documents, about `limit` characters, in pieces of at most 10,000.

    Pieces end at word borders, also across the parts of a document.
    """
    num_characters, carry = 0, ""
    for document in documents:
        text = carry + document.text
        border = len(text) if document.ends else last_word_border(text)
        if len(text) - border > _LONGEST_WORD:
            border = len(text)
        carry = text[border:]
        start = 0
        while border - start > _TEXT_CHARACTERS:
            piece = text[start : start + _TEXT_CHARACTERS]
            piece = piece[: last_word_border(piece) or _TEXT_CHARACTERS]
            yield piece
            start += len(piece)
        yield text[start:border]
        num_characters += len(document.text)
        if num_characters >= limit:
            return
