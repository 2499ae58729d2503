"""Documents -> token files: streamed, on all cores, and resumable.

    documents --cut--> pieces --batches of a megabyte--> tokenizer, in threads --in order--> train.bin, val.bin

Pieces are cut where the tokenizer's ids do not depend on the other side, and written in document
order, so the files do not depend on the number of threads or on interruptions. Memory holds a few
batches per thread.
"""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from common.data.documents import Document
from common.data.splits import SPLITS
from common.data.tokenizers import Tokenizer
from common.errors import DataError
from common.utils.files import named_in_errors, read_json, write_json_atomic

_BATCH_CHARACTERS = 1_000_000
_BATCH_PIECES = 20_000  # limit for short pieces
_LONGEST_UNCUT = 64_000_000  # characters without a cut point
_SAVE_EVERY_SECONDS = 10.0


class Position(NamedTuple):
    """A position in the stream of documents: everything before it is in the token files."""

    num_documents: int = 0  # documents (or parts) read
    carry: str = ""  # tail of the last part, cut once the next one is known
    inside: bool = False  # within a document whose start is written


@dataclass
class Totals:
    """Sums over one token file."""

    num_tokens: int = 0
    num_bytes: int = 0  # of UTF-8 text
    num_documents: int = 0
    surprisal: float = 0.0  # nats; nan if unknown


class _Piece(NamedTuple):
    """A text to encode at once: a document or a part of one."""

    split: str
    text: str
    begins: bool  # a document
    surprisal: float


_Encoded = dict[str, tuple[npt.NDArray[Any], Totals]]  # {split: (tokens, their totals)}


def encode_documents(
    documents: Iterator[Document], tokenizer: Tokenizer, directory: Path, num_threads: int
) -> dict[str, Totals]:
    """Write `<split>.bin` for each split: the tokens of its documents, joined by the end of text.

    A call with the same documents resumes from what a killed one left in `directory`.

    Args:
        documents: each with its split.

    Returns:
        The sums of each split.

    Raises:
        DataError: a document cannot be encoded, or has no cut point.
    """
    writer = _Writer(directory, dtype_of(tokenizer))
    pending: deque[tuple[Future[_Encoded], Position]] = deque()
    try:
        with ThreadPoolExecutor(num_threads, "tokenizer") as pool:
            try:
                for pieces, end in _batches(documents, tokenizer, writer.position):
                    pending.append((pool.submit(_encode, tokenizer, pieces, writer.dtype), end))
                    if len(pending) > 2 * num_threads:
                        encoded, position = pending.popleft()
                        writer.write(encoded.result(), position)
                for encoded, position in pending:
                    writer.write(encoded.result(), position)
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
    finally:
        writer.close()
    return writer.totals


def dtype_of(tokenizer: Tokenizer) -> str:
    """The NumPy dtype of token files: `<u2` where all ids fit, else `<u4`."""
    return "<u2" if tokenizer.vocab_size <= 2**16 else "<u4"


def _batches(
    documents: Iterator[Document], tokenizer: Tokenizer, start: Position
) -> Iterator[tuple[list[_Piece], Position]]:
    """Yield pieces of about a megabyte together, and the position after them."""
    batch: list[_Piece] = []
    num_characters, position = 0, start
    for pieces, position in _pieces(documents, tokenizer, start):
        batch += pieces
        num_characters += sum(len(piece.text) for piece in pieces)
        if num_characters >= _BATCH_CHARACTERS or len(batch) >= _BATCH_PIECES:
            yield batch, position
            batch, num_characters = [], 0
    if batch:
        yield batch, position


def _pieces(
    documents: Iterator[Document], tokenizer: Tokenizer, start: Position
) -> Iterator[tuple[list[_Piece], Position]]:
    """Yield, for each document or part of one, the pieces that end in it, and the position after it."""
    done, carry, inside = start
    for document in islice(documents, done, None):
        done += 1
        text = carry + document.text
        border = len(text) if document.ends else tokenizer.last_border(text)
        carry = text[border:]
        if len(carry) > _LONGEST_UNCUT:
            raise DataError(
                f"{document.key} has {len(carry):,} characters without a cut point",
                "split it into documents, or use another tokenizer: data.tokenizer=bpe",
            )
        assert document.split is not None
        surprisal = math.nan if document.surprisal is None else document.surprisal
        pieces = []
        if border or document.ends:
            for cut in _cut(text[:border], tokenizer):
                pieces.append(_Piece(document.split, cut, not inside, surprisal))
                inside, surprisal = True, surprisal * 0  # counted once; nan stays nan
        inside = inside and not document.ends
        yield pieces, Position(done, carry, inside)


def _cut(text: str, tokenizer: Tokenizer) -> Iterator[str]:
    """Cut `text` into pieces of at most a megabyte, longer if there is no border."""
    start, size = 0, _BATCH_CHARACTERS
    while len(text) - start > size:
        border = tokenizer.last_border(text[start : start + size])
        if border == 0:
            size *= 2
            continue
        yield text[start : start + border]
        start, size = start + border, _BATCH_CHARACTERS
    yield text[start:]


def _encode(tokenizer: Tokenizer, pieces: Sequence[_Piece], dtype: str) -> _Encoded:
    """Encode `pieces`, with an end-of-text token before each document; runs in a thread."""
    ids: dict[str, list[Any]] = {}
    totals: dict[str, Totals] = {}
    encoded = tokenizer.encode_batch([piece.text for piece in pieces])
    for piece, tokens in zip(pieces, encoded, strict=True):
        parts, total = ids.setdefault(piece.split, []), totals.setdefault(piece.split, Totals())
        parts += [[tokenizer.end_of_text], tokens] if piece.begins else [tokens]
        total.num_bytes += len(piece.text.encode("utf-8", "surrogatepass"))
        total.num_documents += piece.begins
        total.surprisal += piece.surprisal
    return {
        split: (np.concatenate(parts).astype(dtype), totals[split]) for split, parts in ids.items()
    }


class _Writer:
    """Writes token files, and every few seconds their progress to resume from."""

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
        for split, total in self.totals.items():
            file = (directory / f"{split}.bin").open("ab")
            file.truncate(total.num_tokens * np.dtype(dtype).itemsize)  # drop the rest
            self._files[split] = file
        self._saved = time.monotonic()

    def write(self, encoded: _Encoded, position: Position) -> None:
        """Append the tokens that end at `position`."""
        for split, (tokens, added) in encoded.items():
            total = self.totals[split]
            if total.num_documents == 0:
                tokens = tokens[1:]  # no end of text before the first document
            with named_in_errors(self._files[split].name):
                self._files[split].write(tokens.data)
            total.num_tokens += len(tokens)
            total.num_bytes += added.num_bytes
            total.num_documents += added.num_documents
            total.surprisal += added.surprisal
        self.position = position
        if time.monotonic() - self._saved > _SAVE_EVERY_SECONDS:
            self._save()

    def _save(self) -> None:
        self._sync()
        totals = {split: asdict(total) for split, total in self.totals.items()}
        write_json_atomic(self._journal, {"position": self.position._asdict(), "totals": totals})
        self._saved = time.monotonic()

    def _sync(self) -> None:
        for file in self._files.values():
            with named_in_errors(file.name):
                file.flush()
                os.fsync(file.fileno())

    def close(self) -> None:
        """Fsync and close the files; a second call does nothing."""
        if self._files:
            self._sync()
            for file in self._files.values():
                file.close()
            self._files = {}
