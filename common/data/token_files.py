"""A folder of token files, the result of `prepare`.

train.bin, val.bin    little-endian uint16 (uint32 above 65,535 tokens), documents joined
tokenizer.json        in the format of `load_tokenizer`
meta.json             recipe, counts, sha256 of every file, versions
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.data.splits import SPLITS
from common.data.tokenizers import Tokenizer, load_tokenizer
from common.errors import DataError
from common.utils.files import read_json, sha256_of, stamp_of, write_json_atomic

_CHECKED = ".checked.json"
Tokens = npt.NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class TokenDataset:
    """Text as tokens, split into `train` and `val`.

    Args:
        meta: the content of meta.json.
        token_files: the memory-mapped tokens by split.
    """

    directory: Path
    tokenizer: Tokenizer
    meta: dict[str, Any]
    token_files: Mapping[str, Tokens]

    @property
    def vocab_size(self) -> int:
        """The number of token ids, special tokens included."""
        return self.tokenizer.vocab_size

    def tokens(self, split: str) -> Tokens:
        """Return the tokens of `train` or `val`: (num_tokens,) uint16 or uint32, read-only."""
        return self.token_files[split]

    @property
    def fingerprint(self) -> dict[str, str]:
        """The sha256 of the tokens of each split, which a resume requires to be equal."""
        return {split: self.meta["splits"][split]["sha256"] for split in SPLITS}

    @property
    def floor_bits_per_byte(self) -> float | None:
        """Lower bound of the expected bits per byte on val, if the source knows it."""
        floor: float | None = self.meta["splits"]["val"].get("floor_bits_per_byte")
        return floor


@dataclass(frozen=True)
class TokenMixture(TokenDataset):
    """Several sources with a common vocabulary; training draws each sequence by weight.

    Args:
        sources: token files by source name.
        weights: positive weights by source name.
    """

    sources: dict[str, TokenDataset]
    weights: dict[str, float]

    def tokens(self, split: str) -> Tokens:
        """Return the tokens of all sources, joined by end-of-text tokens: (num_tokens,), in memory."""
        end = np.array([self.tokenizer.end_of_text], dtype=self.meta["dtype"])
        parts = [part for data in self.sources.values() for part in (end, data.tokens(split))]
        return np.concatenate(parts[1:])

    @property
    def fingerprint(self) -> dict[str, str]:
        """The sha256 of the tokens of each source and split, and the weights."""
        parts = {
            f"{name} {split}": sha256
            for name, data in self.sources.items()
            for split, sha256 in data.fingerprint.items()
        }
        return {**parts, "weights": json.dumps(self.weights)}

    @property
    def floor_bits_per_byte(self) -> float | None:
        return None


def open_tokens(directory: Path) -> TokenDataset:
    """Open a folder of token files and verify its checksums.

    Raises:
        DataError: a file is missing or was changed.
    """
    hint = f"delete the folder to prepare it again: rm -r {directory}"
    meta = read_json(directory / "meta.json", DataError, hint)
    try:
        dtype, tokenizer_sha256 = np.dtype(meta["dtype"]), meta["tokenizer_sha256"]
        sizes = {split: meta["splits"][split]["tokens"] * dtype.itemsize for split in SPLITS}
        sha256s = {split: meta["splits"][split]["sha256"] for split in SPLITS}
    except (KeyError, TypeError) as error:
        raise DataError(f"{directory / 'meta.json'} is damaged ({error!r})", hint) from error
    token_files: dict[str, Tokens] = {}
    stamps: dict[str, list[int]] = {}
    for split, size in sizes.items():
        path = directory / f"{split}.bin"
        found = path.stat().st_size if path.exists() else None
        if found != size:
            raise DataError(f"{path} should have {size} bytes, but has {found or 'none'}", hint)
        with path.open("rb") as file:
            token_files[split] = np.memmap(file, dtype=dtype, mode="r")
            stamps[split] = stamp_of(os.fstat(file.fileno()))
    if not _are_verified(directory, stamps):
        for split, sha256 in sha256s.items():
            if hashlib.sha256(token_files[split].data).hexdigest() != sha256:
                path = directory / f"{split}.bin"
                raise DataError(f"{path} was changed: its checksum differs", hint)
        with suppress(OSError):  # a read-only folder is verified every time
            write_json_atomic(directory / _CHECKED, stamps)
    if sha256_of(directory / "tokenizer.json") != tokenizer_sha256:
        raise DataError(f"{directory / 'tokenizer.json'} does not match the tokens", hint)
    return TokenDataset(directory, load_tokenizer(directory / "tokenizer.json"), meta, token_files)


def _are_verified(directory: Path, stamps: dict[str, list[int]]) -> bool:
    """Whether token files with these stamps have been verified.

    As in git's index, an equal stamp means equal content, unless the file was written in the same
    clock tick as the stamps. Reading 10 GB at each start would take 7 seconds.
    """
    path = directory / _CHECKED
    if not path.exists() or read_json(path, DataError, f"delete {path}") != stamps:
        return False
    return max(time for _, *times in stamps.values() for time in times) < path.stat().st_mtime_ns
