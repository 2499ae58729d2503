"""Documents -> token files: streamed, on all cores, and resumable.

    documents --cut--> pieces of about a megabyte --tokenizer, in threads--> ids --in order--> train.bin, val.bin

Pieces are cut where the tokenizer's ids do not depend on the other side, and written in the order of
the documents, so the files are the same however many threads there are and wherever it was killed.
What is in memory at a time is bounded by a few pieces per thread.
"""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from common.data.documents import Document
from common.data.tokenizers import Tokenizer
from common.errors import DataError
from common.utils.files import named_in_errors, read_json, write_json_atomic

SPLITS = ("train", "val")
_PIECE_CHARACTERS = 1_000_000
_MOST_TEXTS = 20_000  # in a batch, however short they are
_LONGEST_UNCUT = 64_000_000  # characters without a place to cut at
_SAVE_EVERY_SECONDS = 10.0
SplitOf = Callable[[Document, int], tuple[str, int]]


@dataclass
class Position:
    """A place in the stream of documents: everything before it is in the token files."""

    documents: int = 0  # of the source, or parts of them, that were read
    characters: int = 0  # in them
    carry: str = ""  # the end of the last one: where to cut it is known with the next part
    inside: bool = False  # of a document
    started: list[str] = field(default_factory=list)  # the splits that have a document


@dataclass
class Totals:
    """Of one token file."""

    tokens: int = 0
    bytes: int = 0  # of UTF-8 text
    documents: int = 0
    surprisal: float = 0.0


@dataclass(frozen=True)
class _Piece:
    split: str
    text: str
    starts: bool  # a document, so that it counts
    separated: bool  # from the one before it in its split
    surprisal: float | None


@dataclass(frozen=True)
class _Batch:
    pieces: list[_Piece]
    end: Position


def encode_documents(
    documents: Iterator[Document],
    split_of: SplitOf,
    tokenizer: Tokenizer,
    directory: Path,
    threads: int,
) -> dict[str, Totals]:
    """Write `<split>.bin` of every split, and go on where an earlier call was killed.

    `split_of(document, n)`, n being the characters before it: its split, and how many characters of
    it belong there. Raises DataError for a document that cannot be encoded in pieces.
    """
    writer = _Writer(directory, dtype_of(tokenizer))
    pending: deque[tuple[_Batch, Future[dict[str, tuple[bytes, Totals]]]]] = deque()
    try:
        with ThreadPoolExecutor(threads, "tokenizer") as pool:
            try:
                for batch in _batches(documents, split_of, tokenizer, writer.position):
                    pending.append((batch, pool.submit(_encode, tokenizer, batch, writer.dtype)))
                    if len(pending) > 2 * threads:
                        done, future = pending.popleft()
                        writer.write(future.result(), done.end)
                for done, future in pending:
                    writer.write(future.result(), done.end)
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
    finally:
        writer.close()
    return writer.totals


def dtype_of(tokenizer: Tokenizer) -> str:
    return "<u2" if tokenizer.vocab_size <= 2**16 else "<u4"


def _batches(
    documents: Iterator[Document], split_of: SplitOf, tokenizer: Tokenizer, start: Position
) -> Iterator[_Batch]:
    """Pieces of about a megabyte together, from `start` on."""
    position = Position(**asdict(start))
    pieces: list[_Piece] = []
    size = 0
    for _ in range(start.documents):
        next(documents)
    for document in documents:
        for piece in _pieces(document, split_of, tokenizer, position):
            pieces.append(piece)
            size += len(piece.text)
        position.documents += 1
        if size >= _PIECE_CHARACTERS or len(pieces) >= _MOST_TEXTS:
            yield _Batch(pieces, Position(**asdict(position)))
            pieces, size = [], 0
    if pieces:
        yield _Batch(pieces, position)


def _pieces(
    document: Document, split_of: SplitOf, tokenizer: Tokenizer, position: Position
) -> Iterator[_Piece]:
    """The pieces that are complete with this document, or with this part of one."""
    rest = document.text
    while True:
        split, length = split_of(document, position.characters)
        part, rest = rest[:length], rest[length:]
        position.characters += len(part)
        complete = document.ends or bool(rest)  # or else the next part says where to cut
        text = position.carry + part
        border = len(text) if complete else tokenizer.last_border(text)
        if len(text) - border > _LONGEST_UNCUT:
            raise DataError(
                f"{document.key} has {len(text) - border:,} characters without a place to cut it at",
                "split it into documents, or take another tokenizer: data.tokenizer=bpe",
            )
        position.carry = text[border:]
        for cut in _cut(text[:border], tokenizer) if border or complete else ():
            first, known = not position.inside, split in position.started
            whole = document.ends and len(part) == len(document.text)
            surprisal = document.surprisal if whole else None  # of the whole, told once
            if surprisal is not None and not first:
                surprisal = 0.0
            yield _Piece(split, cut, first or not known, first and known, surprisal)
            position.inside = True
            position.started = position.started if known else [*position.started, split]
        if not rest:
            break
    position.inside = position.inside and not document.ends


def _cut(text: str, tokenizer: Tokenizer) -> Iterator[str]:
    """`text` in pieces of up to `_PIECE_CHARACTERS`, where it can be cut."""
    start, size = 0, _PIECE_CHARACTERS
    while len(text) - start > size:
        border = tokenizer.last_border(text[start : start + size])
        if border == 0:
            size *= 2
            continue
        yield text[start : start + border]
        start, size = start + border, _PIECE_CHARACTERS
    yield text[start:]


def _encode(tokenizer: Tokenizer, batch: _Batch, dtype: str) -> dict[str, tuple[bytes, Totals]]:
    """{split: (token file content, what it adds)}; called in a thread."""
    encoded = tokenizer.encode_batch([piece.text for piece in batch.pieces])
    ids: dict[str, list[Any]] = {}
    totals: dict[str, Totals] = {}
    for piece, found in zip(batch.pieces, encoded, strict=True):
        parts, total = ids.setdefault(piece.split, []), totals.setdefault(piece.split, Totals())
        if piece.separated:
            parts.append([tokenizer.end_of_text])
        parts.append(found)
        total.tokens += len(found) + piece.separated
        total.bytes += len(piece.text.encode("utf-8", "surrogatepass"))
        total.documents += piece.starts
        total.surprisal += math.nan if piece.surprisal is None else piece.surprisal
    return {
        split: (np.concatenate(parts).astype(dtype).tobytes(), totals[split])
        for split, parts in ids.items()
    }


class _Writer:
    """The token files being written, and every few seconds how far they are, for a resume."""

    def __init__(self, directory: Path, dtype: str) -> None:
        self.dtype = dtype
        self.position = Position()
        self.totals = {split: Totals() for split in SPLITS}
        self._journal = directory / "progress.json"
        if self._journal.exists():
            saved = read_json(self._journal, DataError)
            self.position = Position(**saved["position"])
            self.totals = {split: Totals(**saved["totals"][split]) for split in SPLITS}
        self._files: dict[str, BinaryIO] = {}
        item = np.dtype(dtype).itemsize
        for split in SPLITS:
            file = (directory / f"{split}.bin").open("ab")
            file.truncate(self.totals[split].tokens * item)  # what came after was not counted
            self._files[split] = file
        self._saved = time.monotonic()

    def write(self, content: dict[str, tuple[bytes, Totals]], end: Position) -> None:
        for split, (data, added) in content.items():
            with named_in_errors(self._files[split].name):
                self._files[split].write(data)
            total = self.totals[split]
            for name, value in asdict(added).items():
                setattr(total, name, getattr(total, name) + value)
        self.position = end
        if time.monotonic() - self._saved > _SAVE_EVERY_SECONDS:
            self._save()

    def _save(self) -> None:
        self._sync()
        totals = {split: asdict(total) for split, total in self.totals.items()}
        write_json_atomic(self._journal, {"position": asdict(self.position), "totals": totals})
        self._saved = time.monotonic()

    def _sync(self) -> None:
        for file in self._files.values():
            with named_in_errors(file.name):
                file.flush()
                os.fsync(file.fileno())

    def close(self) -> None:
        if self._files:
            self._sync()
            for file in self._files.values():
                file.close()
            self._files = {}
