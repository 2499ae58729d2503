"""Read text files, JSON lines and Parquet as streams of documents, with gzip or zstd compression."""

from __future__ import annotations

import codecs
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from common.data.documents import Document
from common.errors import DataError, did_you_mean
from common.utils.files import stamp_of
from common.utils.paths import get_datasets_dir

_TEXT = (".txt", ".md", ".py", ".text", ".rst")
_LINES = (".jsonl", ".ndjson")
_PACKED = (".gz", ".zst")
_BOM_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_BLOCK_BYTES = 4_000_000  # read at a time; larger files yield several parts
_LONGEST_LINE_BYTES = 256_000_000  # of JSON


def digest_of_stamps(files: Iterable[tuple[str, Path]]) -> str:
    """SHA-256 over (key, file); changes with the name, size or time of any file."""
    digest = hashlib.sha256()
    for key, file in files:
        digest.update(json.dumps([key, *stamp_of(file.stat())]).encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class TextFiles:
    """A file, or every readable file of a folder, in a stable order."""

    path: Path
    text_column: str = "text"

    def files(self) -> Iterator[Path]:
        """Walk the folder on each call: millions of names are never all in memory.

        Links to folders are not followed, so there are no loops. Raises DataError if there is no
        file.
        """
        if self.path.is_file():
            yield self.path
            return
        if not self.path.is_dir():
            raise DataError(f"no such file or folder: {self.path}", "check data.path")
        found = False
        for file in _files_below(self.path, self._tokens()):
            found = True
            yield file
        if not found:
            endings = ", ".join((*_TEXT, *_LINES, ".parquet"))
            raise DataError(
                f"no text files in {self.path}",
                f"supported endings: {endings}, the first ones also with .gz or .zst",
            )

    def _tokens(self) -> Path | None:
        """The `tokens` folder inside, if this folder is a dataset."""
        in_assets = self.path.resolve().parent == get_datasets_dir().resolve()
        return self.path / "tokens" if in_assets else None

    def fingerprint(self) -> dict[str, Any]:
        """Changes with the name, size or time of any file."""
        files = ((self.key(file), file) for file in self.files())
        found = {"path": str(self.path.resolve()), "files": digest_of_stamps(files)}
        return found if self.text_column == "text" else found | {"column": self.text_column}

    def num_bytes(self) -> int:
        """Size on disk (of compressed files, compressed)."""
        return sum(file.stat().st_size for file in self.files())

    def documents(self) -> Iterator[Document]:
        """Read every file. Raises DataError for a file that is damaged or not text."""
        for file in self.files():
            kind = _kind(file.name)
            if kind == ".parquet":
                yield from self._parquet(file)
            elif kind in _LINES:
                yield from self._json_lines(file)
            else:
                yield from self._text(file)

    def key(self, file: Path) -> str:
        """The path below the folder, which identifies the documents of `file`."""
        root = self.path.parent if file == self.path else self.path
        name = file.relative_to(root).as_posix()
        # Escape names that are not UTF-8: keys are hashed, and stored with results.
        return os.fsencode(name).decode("utf-8", "backslashreplace")

    def _text(self, file: Path) -> Iterator[Document]:
        decoder = codecs.getincrementaldecoder("utf-8")()
        done = 0
        with _open(file) as stream:
            block = stream.read(_BLOCK_BYTES)
            if block.startswith(codecs.BOM_UTF8):  # byte order mark of Windows editors
                block, done = block[len(codecs.BOM_UTF8) :], len(codecs.BOM_UTF8)
            while True:
                following = stream.read(_BLOCK_BYTES)
                before = done - len(decoder.getstate()[0])  # start of the undecoded bytes
                try:
                    text = decoder.decode(block, final=not following)
                except UnicodeDecodeError as error:
                    encoding = "utf-16" if block.startswith(_BOM_UTF16) else "latin1"
                    raise DataError(
                        f"{file} is not UTF-8 text (byte {before + error.start})",
                        f"convert it, for example: iconv -f {encoding} -t utf-8",
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
                if (text := self._field(file, number, line)) is not None:
                    yield Document(f"{self.key(file)}:{number}", text)

    def _field(self, file: Path, number: int, line: bytes) -> str | None:
        """The text of a row; None for null (no text)."""
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{file}, line {number}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise DataError(
                f"{file}, line {number}: not a JSON object", f'{{"{self.text_column}": ...}}'
            )
        where = f"{file}, line {number}"
        return check_text(value_of(row, self.text_column, where), self.text_column, where)

    def _parquet(self, file: Path) -> Iterator[Document]:
        import pyarrow
        import pyarrow.parquet

        try:
            with pyarrow.parquet.ParquetFile(file) as parquet:
                schema = parquet.schema_arrow
                check_column(self.text_column, schema.names, str(file))
                places = schema.get_all_field_indices(self.text_column)
                if len(places) > 1:
                    raise DataError(
                        f"{file} has {len(places)} columns '{self.text_column}'",
                        "set data.text_column to another one",
                    )
                kind = schema.field(places[0]).type
                if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
                    raise DataError(
                        f"{file}: the column '{self.text_column}' has type {kind}, expected text"
                    )
                number = 0
                for batch in parquet.iter_batches(batch_size=256, columns=[self.text_column]):
                    # Select by name: `a.b` would also match the field b of a column a.
                    for text in batch.column(self.text_column).to_pylist():
                        number += 1
                        if text is not None:
                            yield Document(f"{self.key(file)}:{number}", text)
        except (OSError, pyarrow.ArrowException) as error:
            raise DataError(f"{file} cannot be read as Parquet: {str(error)[:200]}") from error


def check_column(column: str, columns: Iterable[str], where: str) -> None:
    """Raise DataError if `columns` has no `column`."""
    if column not in columns:
        raise DataError(
            f"{where} has no column '{column}'",
            f"set data.text_column; {did_you_mean(column, list(columns))}",
        )


def value_of(row: Mapping[str, object], column: str, where: str) -> object:
    """The value of a row in `column`. Raises DataError if it is missing."""
    check_column(column, row, where)
    return row[column]


def check_text(value: object, column: str, where: str) -> str | None:
    """The text of a row, or None for null. Raises DataError for anything else."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise DataError(f"{where}: '{column}' is {type(value).__name__}, expected text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: '{column}' is not text: half of a surrogate pair at character {error.start}",
            "the writer cut an emoji in two; remove the row, or write the file again",
        ) from error
    return value


def _files_below(folder: Path | str, left_out: Path | None) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        found = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
    for name, is_folder in found:
        if name.startswith("."):
            continue
        if is_folder:
            below = os.path.join(folder, name)  # noqa: PTH118 (a Path takes more)
            if left_out is None or below != str(left_out):
                yield from _files_below(below, left_out)
        elif _kind(name):
            yield Path(folder, name)


def _kind(name: str) -> str:
    """The ending that selects the reader; empty: the file is not read."""
    name = name.lower()
    packed = next((ending for ending in _PACKED if name.endswith(ending)), "")
    stem = name.removesuffix(packed)
    endings = (*_TEXT, *_LINES) if packed else (*_TEXT, *_LINES, ".parquet")
    return next((ending for ending in endings if stem.endswith(ending)), "")


@contextmanager
def _open(file: Path) -> Iterator[BinaryIO]:
    """Yield decompressed blocks. Raises DataError if they are damaged or truncated."""
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
        raise DataError(f"{file} is damaged or truncated: {error}", "download it again") from error
