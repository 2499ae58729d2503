"""What every source of text gives: documents, the large ones in parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Document:
    """A document, or a part of one: with `ends=False` the next has the same key and goes on.

    The key never changes, so that the split into train and val depends on the document alone, not on
    the order or the number of them.
    """

    key: str
    text: str
    split: str | None = None  # given by the source, or None: decided by the key
    surprisal: float | None = None  # nats, where the source knows its own distribution
    ends: bool = True


@dataclass(frozen=True)
class Corpus:
    """`documents()` starts a new pass; `fingerprint` changes when the content does (any JSON)."""

    name: str
    fingerprint: dict[str, Any]
    documents: Callable[[], Iterator[Document]]
    num_bytes: Callable[[], int] | None = (
        None  # about how much there is to read, where that is known
    )
