"""Text -> token files, once.

    assets/datasets/<dataset>/tokens/<tokenizer>/
        train.bin, val.bin    little-endian uint16 (uint32 above 65,535 tokens), documents joined
        tokenizer.json        as `load_tokenizer` reads it
        meta.json             recipe, counts, sha256 of every file, versions

The folder is built under another name and renamed when it is whole, so a reader never sees half of
one. It is reused as long as its recipe (source, tokenizer, split) is the one asked for.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from filelock import FileLock
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from common.data.config import DataConfig
from common.data.corpora import Corpus, Document, open_corpus, split_of
from common.data.tokenizers import TOKENIZERS, Tokenizer, load_tokenizer
from common.errors import DataError
from common.utils.files import fsync_dir, read_json, sha256_of, write_json_atomic
from common.utils.logging import get_logger
from common.utils.manifest import now
from common.utils.paths import get_datasets_dir

SPLITS = ("train", "val")
_CHUNK_CHARACTERS = 4_000_000  # text encoded at a time
_BPE_TRAINING_CHARACTERS = 100_000_000  # more text changes the merges little
Tokens = npt.NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class TokenDataset:
    """A prepared folder: memory-mapped tokens per split, the tokenizer, and what meta.json says."""

    directory: Path
    tokenizer: Tokenizer
    meta: dict[str, Any]

    def tokens(self, split: str) -> Tokens:
        """(tokens,) uint16 or uint32, memory-mapped read-only."""
        tokens: Tokens = np.memmap(
            self.directory / f"{split}.bin", dtype=self.meta["dtype"], mode="r"
        )
        return tokens

    @property
    def fingerprint(self) -> dict[str, str]:
        """What a resumed run must find again: the sha256 of both token files."""
        return {split: self.meta["splits"][split]["sha256"] for split in SPLITS}

    @property
    def floor_bits_per_byte(self) -> float | None:
        """The least bits per byte that any model can expect on val, where the source knows it."""
        floor: float | None = self.meta["splits"]["val"].get("floor_bits_per_byte")
        return floor


def prepare(config: DataConfig) -> TokenDataset:
    """The token files for `config`, built now if they are not there or were built otherwise.

    Raises DataError when the source is missing, empty or too short to be split.
    """
    corpus = open_corpus(config)
    recipe = {
        "source": corpus.fingerprint,
        "tokenizer": config.tokenizer,
        "val_fraction": config.val_fraction,
        "seed": config.seed,
    }
    label = config.tokenizer if config.tokenizer == "char" else f"bpe_{config.vocab_size}"
    target = get_datasets_dir() / corpus.name / "tokens" / label
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.parent / f".{label}.lock"):  # two processes prepare once
        if target.exists():
            if (found := open_tokens(target)).meta["recipe"] == recipe:
                return found
            get_logger("data").info(f"preparing {corpus.name} again: the source or recipe changed")
        _build(corpus, config, recipe, target)
    return open_tokens(target)


def open_tokens(directory: Path) -> TokenDataset:
    """Open a prepared folder. Raises DataError when a file is missing or has not the size it should."""
    hint = f"delete the folder, it is made again: rm -r {directory}"
    meta = read_json(directory / "meta.json", DataError, hint)
    try:
        item_bytes = np.dtype(meta["dtype"]).itemsize
        sizes = {split: meta["splits"][split]["tokens"] * item_bytes for split in SPLITS}
        tokenizer_sha256 = meta["tokenizer_sha256"]
    except (KeyError, TypeError) as error:
        raise DataError(f"{directory / 'meta.json'} is damaged ({error!r})", hint) from error
    for split, expected in sizes.items():
        path = directory / f"{split}.bin"
        found = path.stat().st_size if path.exists() else None
        if found != expected:
            raise DataError(f"{path} should have {expected} bytes, has {found or 'none'}", hint)
    if sha256_of(directory / "tokenizer.json") != tokenizer_sha256:
        raise DataError(f"{directory / 'tokenizer.json'} is not the one the tokens came from", hint)
    return TokenDataset(directory, load_tokenizer(directory / "tokenizer.json"), meta)


def _build(corpus: Corpus, config: DataConfig, recipe: dict[str, Any], target: Path) -> None:
    building = target.with_name(f".{target.name}.building")
    shutil.rmtree(building, ignore_errors=True)  # left by a killed process; the lock is ours
    building.mkdir()
    try:
        with _progress(corpus.name) as progress:
            limit = _BPE_TRAINING_CHARACTERS if config.tokenizer == "bpe" else math.inf
            texts = _texts(_watch(corpus, progress, "reading"), limit)
            tokenizer = TOKENIZERS[config.tokenizer].train(texts, config.vocab_size)
            if tokenizer.vocab_size < 2:
                raise DataError(f"{corpus.name} has no text", "choose another data.path or dataset")
            tokenizer.save(building / "tokenizer.json")
            splits = _encode(corpus, config, tokenizer, building, progress)
        meta = {
            "dataset": corpus.name,
            "recipe": recipe,
            "vocab_size": tokenizer.vocab_size,
            "dtype": _dtype(tokenizer),
            "splits": splits,
            "tokenizer_sha256": sha256_of(building / "tokenizer.json"),
            "versions": {name: version(name) for name in ("numpy", "tokenizers")},
            "created": now(),
        }
        write_json_atomic(building / "meta.json", meta)
        old = target.with_name(f".{target.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            target.rename(old)  # processes that have it mapped keep what they mapped
        building.rename(target)
        fsync_dir(target.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _texts(documents: Iterator[Document], limit: float) -> Iterator[str]:
    """The texts of the first documents, up to about `limit` characters."""
    characters = 0
    for document in documents:
        yield document.text
        characters += len(document.text)
        if characters >= limit:
            return


def _dtype(tokenizer: Tokenizer) -> str:
    return "<u2" if tokenizer.vocab_size <= 2**16 else "<u4"


def _encode(
    corpus: Corpus, config: DataConfig, tokenizer: Tokenizer, directory: Path, progress: Progress
) -> dict[str, Any]:
    """Write train.bin and val.bin; return the counts and checksums of each."""
    writers = {split: _SplitWriter(directory / f"{split}.bin", tokenizer) for split in SPLITS}
    with ExitStack() as stack:
        for writer in writers.values():
            stack.callback(writer.close)
        chunks: dict[str, list[Document]] = {split: [] for split in SPLITS}
        sizes = dict.fromkeys(SPLITS, 0)
        for document in _split_lone_document(_watch(corpus, progress, "encoding"), config):
            split = split_of(document, config.val_fraction, config.seed)
            chunks[split].append(document)
            sizes[split] += len(document.text)
            if sizes[split] >= _CHUNK_CHARACTERS:
                writers[split].write(chunks[split])
                chunks[split], sizes[split] = [], 0
        for split in SPLITS:
            writers[split].write(chunks[split])
    counts = {split: writer.summary() for split, writer in writers.items()}
    for split in SPLITS:
        if counts[split]["tokens"] < 2:
            raise DataError(
                f"the {split} split of {corpus.name} is empty",
                "give more text, or another data.val_fraction",
            )
    return counts


def _split_lone_document(documents: Iterable[Document], config: DataConfig) -> Iterator[Document]:
    """A corpus of one document is cut: the first part trains, the last `val_fraction` judges."""
    iterator = iter(documents)
    first, second = next(iterator, None), next(iterator, None)
    if first is None:
        return
    if second is None:
        cut = int(len(first.text) * (1 - config.val_fraction))
        yield Document(first.key, first.text[:cut], "train")
        yield Document(first.key, first.text[cut:], "val")
        return
    yield first
    yield second
    yield from iterator


class _SplitWriter:
    """One token file being written: a document's tokens, then `<|endoftext|>` before the next."""

    def __init__(self, path: Path, tokenizer: Tokenizer) -> None:
        self._path = path
        self._file: BinaryIO = path.open("wb")
        self._tokenizer = tokenizer
        self._dtype = _dtype(tokenizer)
        self._documents = self._tokens = self._bytes = 0
        self._surprisal = 0.0

    def write(self, documents: list[Document]) -> None:
        encoded = self._tokenizer.encode_batch([document.text for document in documents])
        for document, ids in zip(documents, encoded, strict=True):
            if self._documents:
                ids = np.concatenate([[self._tokenizer.end_of_text], ids])
            self._file.write(ids.astype(self._dtype).tobytes())
            self._documents += 1
            self._tokens += len(ids)
            self._bytes += len(document.text.encode("utf-8", "surrogatepass"))
            self._surprisal += math.nan if document.surprisal is None else document.surprisal

    def close(self) -> None:
        if not self._file.closed:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    def summary(self) -> dict[str, Any]:
        summary: dict[str, Any] = {
            "tokens": self._tokens,
            "bytes": self._bytes,
            "documents": self._documents,
            "sha256": sha256_of(self._path),
        }
        if self._bytes and not math.isnan(self._surprisal):
            summary["floor_bits_per_byte"] = self._surprisal / math.log(2) / self._bytes
        return summary


def _progress(name: str) -> Progress:
    columns = (
        TextColumn(f"preparing {name}: {{task.description}}"),
        BarColumn(),
        TextColumn("{task.completed:,.1f} MB"),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _watch(corpus: Corpus, progress: Progress, description: str) -> Iterator[Document]:
    task = progress.add_task(description, total=None)
    try:
        for document in corpus.documents():
            yield document
            progress.advance(task, len(document.text) / 1e6)
    finally:
        progress.remove_task(task)
