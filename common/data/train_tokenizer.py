"""Learn a vocabulary from a corpus, and measure it on text that it has not seen."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.data.config import DataConfig
from common.data.corpora import choose_split, open_corpus
from common.data.documents import Corpus, Document
from common.data.prepare import progress_of, texts_of
from common.data.tokenizers import TRAINABLE, CharTokenizer, Tokenizer
from common.errors import DataError, did_you_mean
from common.utils.files import sha256_of, write_json_atomic
from common.utils.manifest import now
from common.utils.paths import display_path, folder_of, get_tokenizers_dir

_REPORT_CHARACTERS = 10_000_000  # of held-out text
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class TokenizerReport:
    """Measured on held-out text.

    coverage: characters that the vocabulary has tokens for, as a fraction of all.
    unknown_rate: tokens that stand for text that it has none for (bytes of a fallback, `<unk>`).
    vocab_used: fraction of the vocabulary that occurs.
    round_trip: whether every document came back as it was.
    """

    documents: int
    characters: int
    tokens: int
    coverage: float
    unknown_rate: float
    tokens_per_word: float
    tokens_per_byte: float
    bytes_per_token: float
    vocab_used: float
    round_trip: bool
    mb_per_second: float


def train_tokenizer(
    config: DataConfig, name: str, *, holdout: float = 0.05, limit: float = float("inf")
) -> tuple[Path, TokenizerReport]:
    """Train `config.tokenizer` with `config.vocab_size` on the source of `config`, as assets/tokenizers/<name>.

    The documents that `config.seed` chooses, a fraction `holdout`, are kept back for the report (of a
    single document its last part). At most `limit` characters are learned from. The folder holds
    tokenizer.json and manifest.json. Raises DataError for a source without text or a kind that is not trained.
    """
    if config.tokenizer not in TRAINABLE:
        raise DataError(
            f"a {config.tokenizer} tokenizer is not trained", did_you_mean("", [*TRAINABLE])
        )
    folder = folder_of(get_tokenizers_dir(), name)
    if folder.exists():
        raise _taken(folder)
    corpus = open_corpus(config)
    started = time.monotonic()
    with progress_of(f"{name}: learning the vocabulary") as watch:
        texts = texts_of(
            _part(watch(corpus.documents()), corpus, "train", holdout, config.seed), limit
        )
        tokenizer = TRAINABLE[config.tokenizer].train(texts, config.vocab_size)
    seconds = time.monotonic() - started
    if tokenizer.vocab_size < 2:
        raise DataError(f"{corpus.name} has no text", "choose another data.path or dataset")
    held_out = _part(corpus.documents(), corpus, "val", holdout, config.seed)
    report = evaluate_tokenizer(tokenizer, texts_of(held_out, _REPORT_CHARACTERS))
    building = folder.with_name(f".{name}.{os.getpid()}.tmp")
    tokenizer.save(building / "tokenizer.json")
    manifest = {
        "name": name,
        "kind": config.tokenizer,
        "vocab_size": tokenizer.vocab_size,
        "loses": tokenizer.loses,
        "source": {"name": corpus.name, **corpus.fingerprint},
        "holdout": holdout,
        "seed": config.seed,
        "report": asdict(report),
        "seconds": round(seconds, 2),
        "sha256": sha256_of(building / "tokenizer.json"),
        "created": now(),
    }
    write_json_atomic(building / "manifest.json", manifest)
    try:
        building.rename(folder)
    except OSError as error:  # another process was first
        shutil.rmtree(building)
        raise _taken(folder) from error
    return folder, report


def _taken(folder: Path) -> DataError:
    return DataError(
        f"there is a tokenizer '{folder.name}' already, and others may read it",
        f"choose another name, or delete {display_path(folder)}",
    )


def _part(
    documents: Iterator[Document], corpus: Corpus, part: str, holdout: float, seed: int
) -> Iterator[Document]:
    """The documents to learn from (`train`) or to measure with (`val`)."""
    lone = sum(1 for _ in zip(range(2), _endings(corpus.documents()), strict=False)) < 2
    if not lone:
        for document in documents:
            unsplit = Document(document.key, document.text, ends=document.ends)
            if choose_split(unsplit, holdout, seed) == part:
                yield unsplit
        return
    cut = int(sum(len(d.text) for d in corpus.documents()) * (1 - holdout))
    before = 0
    for document in documents:
        border = min(max(cut - before, 0), len(document.text))
        text = document.text[:border] if part == "train" else document.text[border:]
        before += len(document.text)
        if text:
            yield Document(document.key, text, ends=document.ends)


def _endings(documents: Iterable[Document]) -> Iterator[bool]:
    return (True for document in documents if document.ends)


def evaluate_tokenizer(tokenizer: Tokenizer, texts: Iterable[str]) -> TokenizerReport:
    """What a tokenizer makes of `texts`. Raises DataError when there is none."""
    sums: dict[str, float] = dict.fromkeys(
        ("documents", "characters", "bytes", "words", "tokens", "unknown", "covered"), 0
    )
    used = np.zeros(tokenizer.vocab_size, dtype=np.bool_)
    round_trip, seconds = True, 0.0
    for text in texts:
        kept = _known(tokenizer, text)
        started = time.perf_counter()
        ids = tokenizer.encode(kept)
        seconds += time.perf_counter() - started
        unknown = tokenizer.is_unknown(ids)
        lost = int(tokenizer.token_bytes[ids[unknown]].sum()) if unknown.any() else 0
        sums["documents"] += 1
        sums["characters"] += len(text)
        sums["bytes"] += len(text.encode("utf-8", "surrogatepass"))
        sums["words"] += sum(1 for _ in _WORD.finditer(text))
        sums["tokens"] += len(ids)
        sums["unknown"] += int(unknown.sum()) + len(text) - len(kept)
        sums["covered"] += len(kept) - lost
        used[ids] = True
        round_trip = round_trip and tokenizer.decode(ids.tolist()) == text
    if not sums["characters"]:
        raise DataError("no text was held out to measure the tokenizer with", "give more text")
    return TokenizerReport(
        documents=int(sums["documents"]),
        characters=int(sums["characters"]),
        tokens=int(sums["tokens"]),
        coverage=max(0.0, sums["covered"] / sums["characters"]),
        unknown_rate=sums["unknown"] / max(1, sums["tokens"]),
        tokens_per_word=sums["tokens"] / max(1, sums["words"]),
        tokens_per_byte=sums["tokens"] / sums["bytes"],
        bytes_per_token=sums["bytes"] / max(1, sums["tokens"]),
        vocab_used=float(used.mean()),
        round_trip=round_trip,
        mb_per_second=sums["bytes"] / 1e6 / max(seconds, 1e-9),
    )


def _known(tokenizer: Tokenizer, text: str) -> str:
    """Without the characters that a char tokenizer refuses: they count as unknown."""
    if not isinstance(tokenizer, CharTokenizer):
        return text
    known = {*tokenizer.characters}
    return text if known >= {*text} else "".join([c for c in text if c in known])


def describe(report: TokenizerReport) -> list[tuple[str, str]]:
    """(name, value) pairs, as a table shows them."""
    return [(name.replace("_", " "), _cell(name, value)) for name, value in asdict(report).items()]


def _cell(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "every text" if value else "not every text"
    if name in ("coverage", "unknown_rate", "vocab_used"):
        return f"{value:.2%}"
    return f"{value:,.3f}" if isinstance(value, float) else f"{value:,}"
