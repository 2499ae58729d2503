"""Text files, JSON lines and Parquet as streams of documents; gzip and zstd are read on the way."""

from __future__ import annotations

import codecs
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from common.data.documents import Document
from common.errors import DataError, did_you_mean
from common.utils.files import stamp_of

_TEXT = (".txt", ".md", ".py", ".text", ".rst")
_LINES = (".jsonl", ".ndjson")
_PACKED = (".gz", ".zst")
_BLOCK_BYTES = 4_000_000  # read at a time; a larger file comes in parts
_LONGEST_LINE_BYTES = 256_000_000  # of JSON


def digest_of_stamps(files: Iterable[tuple[str, Path]]) -> str:
    """SHA-256 over (key, file): changes with the name, size or time of any of them."""
    digest = hashlib.sha256()
    for key, file in files:
        digest.update(json.dumps([key, *stamp_of(file.stat())]).encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class TextFiles:
    """A file, or every file of a folder that can be read, in an order that never changes."""

    path: Path
    text_column: str = "text"

    def files(self) -> Iterator[Path]:
        """Found anew at each call, folder by folder: the names of millions are never all in memory.

        No link to a folder is followed, so there are no loops. Raises DataError where there is none.
        """
        if self.path.is_file():
            yield self.path
            return
        if not self.path.is_dir():
            raise DataError(f"no file or folder {self.path}", "check data.path")
        found = False
        for file in _files_below(self.path):
            found = True
            yield file
        if not found:
            endings = ", ".join((*_TEXT, *_LINES, ".parquet"))
            raise DataError(
                f"no text files in {self.path}",
                f"files must end in {endings}, the first ones also with .gz or .zst",
            )

    def fingerprint(self) -> dict[str, Any]:
        """Changes with the name, size or time of any file."""
        files = ((self.key(file), file) for file in self.files())
        found = {"path": str(self.path.resolve()), "files": digest_of_stamps(files)}
        return found if self.text_column == "text" else found | {"column": self.text_column}

    def num_bytes(self) -> int:
        """On the disk, packed ones as they are."""
        return sum(file.stat().st_size for file in self.files())

    def documents(self) -> Iterator[Document]:
        for file in self.files():
            kind = _kind(file.name)
            if kind == ".parquet":
                yield from self._parquet(file)
            elif kind in _LINES:
                yield from self._json_lines(file)
            else:
                yield from self._text(file)

    def key(self, file: Path) -> str:
        root = self.path.parent if file == self.path else self.path
        return file.relative_to(root).as_posix()

    def _text(self, file: Path) -> Iterator[Document]:
        decoder = codecs.getincrementaldecoder("utf-8")()
        done = 0
        with _open(file) as stream:
            block = stream.read(_BLOCK_BYTES)
            while True:
                following = stream.read(_BLOCK_BYTES)
                before = done - len(decoder.getstate()[0])  # where what is decoded now begins
                try:
                    text = decoder.decode(block, final=not following)
                except UnicodeDecodeError as error:
                    raise DataError(
                        f"{file} is not UTF-8 text (byte {before + error.start})",
                        "convert it, for example: iconv -f latin1 -t utf-8",
                    ) from error
                yield Document(self.key(file), text, ends=not following)
                if not following:
                    return
                done += len(block)
                block = following

    def _json_lines(self, file: Path) -> Iterator[Document]:
        with _open(file) as stream:
            number = 0
            while line := stream.readline(_LONGEST_LINE_BYTES):
                number += 1
                if len(line) == _LONGEST_LINE_BYTES:
                    raise DataError(
                        f"{file}, line {number}: longer than {_LONGEST_LINE_BYTES:,} bytes",
                        "write one JSON object per line",
                    )
                if not line.strip():
                    continue
                yield Document(f"{self.key(file)}:{number}", self._field(file, number, line))

    def _field(self, file: Path, number: int, line: bytes) -> str:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{file}, line {number}: not JSON ({error})") from error
        text = row.get(self.text_column) if isinstance(row, dict) else None
        if not isinstance(text, str):
            columns = list(row) if isinstance(row, dict) else []
            raise DataError(
                f"{file}, line {number}: no text in '{self.text_column}'",
                f"set data.text_column; {did_you_mean(self.text_column, columns)}",
            )
        return text

    def _parquet(self, file: Path) -> Iterator[Document]:
        import pyarrow
        import pyarrow.parquet

        try:
            with pyarrow.parquet.ParquetFile(file) as parquet:
                columns = parquet.schema_arrow.names
                if self.text_column not in columns:
                    raise DataError(
                        f"{file} has no column '{self.text_column}'",
                        f"set data.text_column; {did_you_mean(self.text_column, columns)}",
                    )
                kind = parquet.schema_arrow.field(self.text_column).type
                if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
                    raise DataError(
                        f"{file}: the column '{self.text_column}' holds {kind}, no text"
                    )
                number = 0
                for batch in parquet.iter_batches(batch_size=256, columns=[self.text_column]):
                    for text in batch.column(0).to_pylist():
                        number += 1
                        yield Document(f"{self.key(file)}:{number}", text or "")
        except (OSError, pyarrow.ArrowException) as error:
            raise DataError(f"{file} cannot be read as Parquet: {str(error)[:200]}") from error


def _files_below(folder: Path | str) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        found = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
    for name, is_folder in found:
        if name.startswith(".") or (is_folder and name == "tokens"):
            continue
        if is_folder:
            yield from _files_below(os.path.join(folder, name))  # noqa: PTH118 (a Path takes more)
        elif _kind(name):
            yield Path(folder, name)


def _kind(name: str) -> str:
    """The ending that says how a file is read; empty: it is not."""
    name = name.lower()
    packed = next((ending for ending in _PACKED if name.endswith(ending)), "")
    stem = name.removesuffix(packed)
    endings = (*_TEXT, *_LINES) if packed else (*_TEXT, *_LINES, ".parquet")
    return next((ending for ending in endings if stem.endswith(ending)), "")


@contextmanager
def _open(file: Path) -> Iterator[BinaryIO]:
    """The unpacked bytes. Raises DataError when they are damaged or cut off."""
    codec = {".gz": "gzip", ".zst": "zstd"}.get(file.suffix.lower())
    if codec is None:
        with file.open("rb", buffering=1 << 20) as stream:
            yield stream
        return
    import pyarrow

    try:
        with (
            pyarrow.OSFile(str(file)) as raw,
            pyarrow.CompressedInputStream(raw, codec) as unpacked,
        ):
            yield io.BufferedReader(unpacked, 1 << 20)
    except OSError as error:
        if error.errno is not None:
            raise
        raise DataError(f"{file} is damaged or cut off: {error}", "get it again") from error
