"""nanoGPT's token files: `train.bin`, `val.bin` and, for its character vocabularies, `meta.pkl`.

Data prepared there can be trained on here. apps/nanogpt.py writes `meta.pkl` for the reverse.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from common.data.documents import Document
from common.errors import DataError

_LARGEST_META_BYTES = 50_000_000
_BLOCK_TOKENS = 1_000_000


def is_nanogpt(folder: Path) -> bool:
    """Whether `folder` holds both token files."""
    return all((folder / f"{split}.bin").is_file() for split in ("train", "val"))


def read_meta(path: Path) -> dict[str, Any]:
    """Read a `meta.pkl` of plain data. Raises DataError for anything else, and executes nothing."""
    if path.stat().st_size > _LARGEST_META_BYTES:
        raise DataError(f"{path} is too large for nanoGPT: {path.stat().st_size:,} bytes")
    try:
        meta = _PlainData(io.BytesIO(path.read_bytes())).load()
    except DataError:
        raise
    except Exception as error:  # a damaged pickle raises nearly anything
        raise DataError(f"{path} is damaged: {type(error).__name__}: {error}") from error
    if not isinstance(meta, dict) or not isinstance(meta.get("vocab_size"), int):
        raise DataError(f"{path} is not from nanoGPT: it has no vocab_size")
    return meta


class _PlainData(pickle.Unpickler):
    """Unpickles numbers, strings, lists and dicts only; refuses everything else by name."""

    def find_class(self, module: str, name: str) -> Any:
        raise DataError(
            f"meta.pkl refers to {module}.{name}", "it is not from nanoGPT; nothing was executed"
        )

    def persistent_load(self, identity: Any) -> Any:
        raise DataError("meta.pkl refers to external objects")


def nanogpt_documents(folder: Path) -> Iterator[Document]:
    """Decode both files to documents, keeping their splits.

    A `meta.pkl` with characters decodes them, else GPT-2's encoding as in nanoGPT, where every
    `<|endoftext|>` ends a document.
    """
    meta = read_meta(folder / "meta.pkl") if (folder / "meta.pkl").exists() else None
    for split in ("train", "val"):
        tokens = _map(folder / f"{split}.bin")
        if meta is None:
            yield from _gpt2_documents(split, tokens)
        else:
            yield from _characters(split, tokens, _letters(meta, folder))


def _map(path: Path) -> Any:
    size = path.stat().st_size
    if size == 0 or size % 2:
        found = "is empty" if size == 0 else f"has {size:,} bytes, an odd number"
        raise DataError(
            f"{path} {found}: nanoGPT writes two per token", "prepare it again with nanoGPT"
        )
    return np.memmap(path, dtype="<u2", mode="r")


def _letters(meta: dict[str, Any], folder: Path) -> list[str]:
    itos = meta.get("itos")
    if not isinstance(itos, dict) or not all(
        isinstance(itos.get(i), str) for i in range(meta["vocab_size"])
    ):
        raise DataError(
            f"{folder / 'meta.pkl'} does not contain the text of each token",
            "train on the text itself: data.path",
        )
    return [itos[i] for i in range(meta["vocab_size"])]


def _characters(split: str, tokens: Any, letters: list[str]) -> Iterator[Document]:
    for start in range(0, len(tokens), _BLOCK_TOKENS):
        block = tokens[start : start + _BLOCK_TOKENS]
        if block.max() >= len(letters):
            raise DataError(
                f"{split}.bin has the token {block.max()}, meta.pkl {len(letters)} characters",
                "they are from different preparations",
            )
        text = "".join([letters[i] for i in block])
        yield Document(split, text, split, ends=start + _BLOCK_TOKENS >= len(tokens))


def _gpt2_documents(split: str, tokens: Any) -> Iterator[Document]:
    from common.data.tokenizers import TiktokenTokenizer

    gpt2 = TiktokenTokenizer.named("gpt2")
    ends = [*np.flatnonzero(tokens == gpt2.end_of_text), len(tokens)]
    start = 0
    for number, end in enumerate(ends):
        if end > start:
            yield Document(f"{split}:{number}", gpt2.decode(tokens[start:end].tolist()), split)
        start = int(end) + 1
