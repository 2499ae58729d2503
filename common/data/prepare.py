"""Text -> token files, once.

    assets/datasets/<dataset>/tokens/<tokenizer>-<digest of the recipe>/
        train.bin, val.bin    little-endian uint16 (uint32 above 65,535 tokens), documents joined
        tokenizer.json        as `load_tokenizer` reads it
        meta.json             recipe, counts, sha256 of every file, versions

The recipe is everything that decides the content: the source with its path, options and the stamps of
its files, the tokenizer, the split. Each recipe has a folder of its own, which is built under another
name, renamed when it is whole, and never changed: what a process has opened stays what it asked for,
whatever others prepare meanwhile, and a folder that may only be read is enough.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from common.data.config import DataConfig
from common.data.corpora import choose_split, open_corpus
from common.data.documents import Corpus, Document
from common.data.encoding import SPLITS, SplitOf, Totals, dtype_of, encode_documents
from common.data.tokenizers import (
    TRAINABLE,
    TiktokenTokenizer,
    Tokenizer,
    find_tokenizer,
    find_tokenizer_file,
    load_tokenizer,
)
from common.data.tokenizers.base import last_word_border
from common.errors import DataError, ResearchError
from common.utils.file_locks import file_lock
from common.utils.files import fsync_dir, read_json, sha256_of, stamp_of, write_json_atomic
from common.utils.logging import get_logger
from common.utils.manifest import now
from common.utils.paths import get_datasets_dir
from common.utils.progress import with_progress

TRAINING_CHARACTERS = 100_000_000  # more text changes a vocabulary little
_LONGEST_WORD = 1_000_000  # characters; a longer one may be cut while a vocabulary is learned
# Characters: the trainer counts texts side by side. A word without an end is cut there too: the time
# of the trainer grows with the square of a word's length (12 s for 100,000 spaces, 0.2 s for 10,000).
_TRAINING_PIECE = 10_000
_RECIPE_VERSION = 2  # raised when the same recipe gives other bytes than before
_CHECKED = ".checked.json"
Watch = Callable[[Iterator[Document]], Iterator[Document]]
Tokens = npt.NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class TokenDataset:
    """A prepared folder: memory-mapped tokens per split, the tokenizer, and what meta.json says."""

    directory: Path
    tokenizer: Tokenizer
    meta: dict[str, Any]
    mapped: Mapping[str, Tokens]  # by split

    def tokens(self, split: str) -> Tokens:
        """(tokens,) uint16 or uint32, memory-mapped read-only."""
        return self.mapped[split]

    @property
    def fingerprint(self) -> dict[str, str]:
        """What a resumed run must find again: the sha256 of the mapped tokens of both splits."""
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
    if config.mixture:
        from common.data.mixture import prepare_mixture

        return prepare_mixture(config, prepare)
    corpus = open_corpus(config)
    recipe = {
        "version": _RECIPE_VERSION,
        "source": corpus.fingerprint,
        "tokenizer": _tokenizer_recipe(config),
        "val_fraction": config.val_fraction,
        "split_by": config.split_by,
        "seed": config.seed,
    }
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]
    target = get_datasets_dir() / corpus.name / "tokens" / f"{_label(config)}-{digest}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(target.parent / f".{target.name}.lock"):  # two processes prepare once
            if not target.exists():
                _build(corpus, config, recipe, target)
    return open_tokens(target)


def open_tokens(directory: Path) -> TokenDataset:
    """Open a prepared folder: map its tokens and check that they are those of meta.json.

    Raises DataError when a file is missing, or is not the one that was prepared.
    """
    hint = f"delete the folder, it is made again: rm -r {directory}"
    meta = read_json(directory / "meta.json", DataError, hint)
    try:
        dtype, tokenizer_sha256 = np.dtype(meta["dtype"]), meta["tokenizer_sha256"]
        facts = {
            split: (meta["splits"][split]["tokens"], meta["splits"][split]["sha256"])
            for split in SPLITS
        }
    except (KeyError, TypeError) as error:
        raise DataError(f"{directory / 'meta.json'} is damaged ({error!r})", hint) from error
    mapped: dict[str, Tokens] = {}
    stamps: dict[str, list[int]] = {}
    for split, (count, _) in facts.items():
        path, expected = directory / f"{split}.bin", count * dtype.itemsize
        found = path.stat().st_size if path.exists() else None
        if found != expected:
            raise DataError(f"{path} should have {expected} bytes, has {found or 'none'}", hint)
        with path.open("rb") as file:
            mapped[split] = np.memmap(file, dtype=dtype, mode="r")
            stamps[split] = stamp_of(os.fstat(file.fileno()))
    if not _are_checked(directory, stamps):
        for split, (_, sha256) in facts.items():
            if hashlib.sha256(mapped[split].data).hexdigest() != sha256:
                path = directory / f"{split}.bin"
                raise DataError(f"{path} is not what was prepared: its checksum differs", hint)
        _write_stamps(directory, stamps)
    if sha256_of(directory / "tokenizer.json") != tokenizer_sha256:
        raise DataError(f"{directory / 'tokenizer.json'} is not the one the tokens came from", hint)
    return TokenDataset(directory, load_tokenizer(directory / "tokenizer.json"), meta, mapped)


def _are_checked(directory: Path, stamps: dict[str, list[int]]) -> bool:
    """Whether the checksums of the token files with these stamps were found right before.

    As in git's index, a file of the same stamp has the same content, unless it was written in the
    same tick of the clock as the stamps. Reading 10 GB at each start of a run would take 7 seconds.
    """
    path = directory / _CHECKED
    if not path.exists() or read_json(path, DataError, f"delete {path}") != stamps:
        return False
    return max(time for _, *times in stamps.values() for time in times) < path.stat().st_mtime_ns


def _write_stamps(directory: Path, stamps: dict[str, list[int]]) -> None:
    with suppress(OSError):  # a folder that may only be read is checked at each start
        write_json_atomic(directory / _CHECKED, stamps)


def _label(config: DataConfig) -> str:
    """The folder of its token files, in that of the dataset."""
    what = {
        "char": "",
        "tiktoken": config.encoding,
        "pretrained": (config.pretrained_tokenizer or "").strip("/").replace("/", "--"),
    }.get(config.tokenizer, str(config.vocab_size))
    return "_".join(part for part in (config.tokenizer, what) if part)


def _tokenizer_recipe(config: DataConfig) -> dict[str, Any]:
    """What decides on the tokenizer, besides the text."""
    if config.tokenizer in TRAINABLE:
        size = {} if config.tokenizer == "char" else {"vocab_size": config.vocab_size}
        return {"kind": config.tokenizer, **size}
    if config.tokenizer == "tiktoken":
        return {"kind": config.tokenizer, "name": config.encoding}
    name = str(config.pretrained_tokenizer)
    return {"kind": config.tokenizer, "name": name, "sha256": _sha256_of_tokenizer(name)}


def _sha256_of_tokenizer(name: str) -> list[str]:
    """Of the files that `load_tokenizer` reads for a tokenizer that somebody else made."""
    file = find_tokenizer_file(name)
    files = (file, file.with_name("tokenizer_config.json"))
    return [sha256_of(path) for path in files if path.is_file()]


def _build(corpus: Corpus, config: DataConfig, recipe: dict[str, Any], target: Path) -> None:
    building = target.with_name(f".{target.name}.building")
    if not (building / "recipe.json").exists() or read_json(
        building / "recipe.json", DataError
    ) != _versioned(recipe):
        shutil.rmtree(building, ignore_errors=True)  # begun for something else
        building.mkdir()
        write_json_atomic(building / "recipe.json", _versioned(recipe))
    else:
        get_logger("data").info(f"going on with the preparation of {corpus.name}")
    started = time.monotonic()
    try:
        tokenizer = _make_tokenizer(corpus, config, building)
        splits = _encode(corpus, config, tokenizer, building)
        _check_unchanged(config, recipe)
    except ResearchError:
        shutil.rmtree(building, ignore_errors=True)
        raise
    meta = {
        "dataset": corpus.name,
        "recipe": recipe,
        "tokenizer": config.tokenizer,
        "vocab_size": tokenizer.vocab_size,
        "dtype": dtype_of(tokenizer),
        "splits": splits,
        "tokenizer_sha256": sha256_of(building / "tokenizer.json"),
        "versions": _VERSIONS,
        "created": now(),
    }
    write_json_atomic(building / "meta.json", meta)
    for name in ("recipe.json", "progress.json"):
        (building / name).unlink(missing_ok=True)
    building.rename(target)
    fsync_dir(target.parent)
    _announce(meta, time.monotonic() - started)


def _check_unchanged(config: DataConfig, recipe: dict[str, Any]) -> None:
    """Raises DataError where a file was changed between the look at it and the end of reading it."""
    if config.streaming:
        return  # rows of one commit of the hub
    if (
        open_corpus(config).fingerprint != recipe["source"]
        or _tokenizer_recipe(config) != recipe["tokenizer"]
    ):
        raise DataError(
            "the text or its tokenizer was changed while it was prepared",
            "run the same command again once nothing writes to it",
        )


_VERSIONS = {name: version(name) for name in ("numpy", "tokenizers")}


def _versioned(recipe: dict[str, Any]) -> dict[str, Any]:
    """Half of a preparation is gone on with by the same software only."""
    result: dict[str, Any] = json.loads(json.dumps(recipe | {"versions": _VERSIONS}))
    return result


def _announce(meta: dict[str, Any], seconds: float) -> None:
    size = sum(split["bytes"] for split in meta["splits"].values()) / 1e6
    tokens = sum(split["tokens"] for split in meta["splits"].values())
    get_logger("data").info(
        f"prepared {meta['dataset']}: {size:,.1f} MB of text, {tokens:,} tokens, in {seconds:.1f} s"
    )


def _make_tokenizer(corpus: Corpus, config: DataConfig, building: Path) -> Tokenizer:
    """The tokenizer of `config`, trained on the text if it has to be; saved in the folder."""
    path = building / "tokenizer.json"
    if path.exists():  # left by a killed process
        return load_tokenizer(path)
    if config.tokenizer == "tiktoken":
        tokenizer: Tokenizer = TiktokenTokenizer.named(config.encoding)
    elif config.tokenizer == "pretrained":
        tokenizer = find_tokenizer(str(config.pretrained_tokenizer))
    else:
        limit = math.inf if config.tokenizer == "char" else TRAINING_CHARACTERS
        with progress_of(f"preparing {corpus.name}: learning the vocabulary") as watch:
            texts = texts_of(watch(corpus.documents()), limit)
            tokenizer = TRAINABLE[config.tokenizer].train(texts, config.vocab_size)
    if tokenizer.vocab_size < 2:
        raise DataError(f"{corpus.name} has no text", "choose another data.path or dataset")
    if tokenizer.loses:
        get_logger("data").warning(f"decoding does not give every text back: {tokenizer.loses}")
    tokenizer.save(path)
    return tokenizer


def texts_of(documents: Iterator[Document], limit: float) -> Iterator[str]:
    """The texts of the first documents, up to about `limit` characters; long ones in pieces."""
    characters, carry = 0, ""
    for document in documents:
        text = carry + document.text
        border = len(text) if document.ends else last_word_border(text)
        if len(text) - border > _LONGEST_WORD:
            border = len(text)
        carry = text[border:]  # no word is cut where a part of a document ends
        start = 0
        while border - start > _TRAINING_PIECE:
            piece = text[start : start + _TRAINING_PIECE]
            piece = piece[: last_word_border(piece) or _TRAINING_PIECE]
            yield piece
            start += len(piece)
        yield text[start:border]
        characters += len(document.text)
        if characters >= limit:
            return


def _encode(
    corpus: Corpus, config: DataConfig, tokenizer: Tokenizer, directory: Path
) -> dict[str, Any]:
    """Write train.bin and val.bin; return the counts and checksums of each."""
    split_of = _by_fraction(corpus, config) or _by_document(config)
    total = corpus.num_bytes() if corpus.num_bytes else None
    with progress_of(f"preparing {corpus.name}: encoding", total) as watch:
        documents = watch(corpus.documents())
        threads = os.cpu_count() or 1
        totals = encode_documents(documents, split_of, tokenizer, directory, threads)
    counts = {split: _summary(directory / f"{split}.bin", totals[split]) for split in SPLITS}
    for split in SPLITS:
        if counts[split]["tokens"] < 2:
            raise DataError(
                f"the {split} split of {corpus.name} is empty",
                "give more text, or another data.val_fraction",
            )
    return counts


def _by_document(config: DataConfig) -> SplitOf:
    return lambda document, _: (
        choose_split(document, config.val_fraction, config.seed),
        len(document.text),
    )


def _by_fraction(corpus: Corpus, config: DataConfig) -> SplitOf | None:
    """The first part of all text trains, the last `val_fraction` judges; None: documents decide."""
    if config.split_by == "document" and _has_several_documents(corpus):
        return None
    characters = sum(len(document.text) for document in corpus.documents())
    cut = int(characters * (1 - config.val_fraction))

    def split_of(document: Document, before: int) -> tuple[str, int]:
        return ("train", cut - before) if before < cut else ("val", len(document.text))

    return split_of


def _has_several_documents(corpus: Corpus) -> bool:
    ends = 0
    for document in corpus.documents():
        if ends:
            return True
        ends += document.ends
    return False


def _summary(path: Path, totals: Totals) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "tokens": totals.tokens,
        "bytes": totals.bytes,
        "documents": totals.documents,
        "sha256": sha256_of(path),
    }
    if totals.bytes and not math.isnan(totals.surprisal):
        summary["floor_bits_per_byte"] = totals.surprisal / math.log(2) / totals.bytes
    return summary


@contextmanager
def progress_of(title: str, total_bytes: int | None = None) -> Iterator[Watch]:
    """`watch(documents)` gives them on and shows how far they are, in MB/s: a bar on the terminal,
    elsewhere a line in the log now and then."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(title, total=total_bytes)

        def watch(documents: Iterator[Document]) -> Iterator[Document]:
            if not console.is_terminal:
                total = total_bytes and total_bytes / 1e6
                documents = with_progress(
                    documents, title, amount=lambda d: len(d.text) / 1e6, total=total, unit="MB"
                )
            for document in documents:
                yield document
                bar.advance(task, len(document.text))

        yield watch
