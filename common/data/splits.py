"""Split text into training and validation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from common.data.documents import Corpus, Document

SPLITS = ("train", "val")


def choose_split(document: Document, val_fraction: float, seed: int) -> str:
    """Return `train` or `val`: the source's own split, else a draw by the document's key and the seed."""
    if document.split is not None:
        return document.split
    digest = hashlib.sha256(f"{seed}:{document.key}".encode()).digest()
    return "val" if int.from_bytes(digest[:8], "big") < val_fraction * 2**64 else "train"


def split_documents(
    corpus: Corpus,
    documents: Iterator[Document],
    *,
    split_by: str,
    val_fraction: float,
    seed: int,
) -> Iterator[Document]:
    """Yield `documents`, a pass over `corpus`, with the split of each.

    With `split_by="document"` each document belongs to one split, see `choose_split`. With
    `split_by="fraction"`, and for a single document, the last `val_fraction` of all characters is
    for validation; the document at the border is split in two.
    """
    if split_by == "document" and _has_several_documents(corpus):
        for d in documents:
            split = choose_split(d, val_fraction, seed)
            yield Document(d.key, d.text, split, d.surprisal, d.ends)
        return
    left = int(sum(len(d.text) for d in corpus.documents()) * (1 - val_fraction))
    for d in documents:  # `left` characters remain for training
        head, tail = d.text[:left], d.text[left:]
        surprisal = None if head and tail else d.surprisal  # unknown for a part
        if left:
            yield Document(d.key, head, "train", surprisal, d.ends or len(d.text) >= left)
        if tail or not left:
            yield Document(d.key, tail, "val", surprisal, d.ends)
        left -= len(head)


def _has_several_documents(corpus: Corpus) -> bool:
    ended = False
    for document in corpus.documents():
        if ended:
            return True
        ended = document.ends
    return False
