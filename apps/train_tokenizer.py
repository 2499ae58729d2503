"""Train a tokenizer on a corpus, and evaluate it on held-out text."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from common.data.config import DataConfig
from common.data.corpora import open_corpus
from common.data.documents import Corpus, Document, reading_progress
from common.data.splits import split_documents
from common.data.tokenizers import TRAINABLE, CharTokenizer, Tokenizer
from common.data.vocabulary import training_texts
from common.errors import DataError, did_you_mean
from common.utils.files import atomic_folder, sha256_of, write_json_atomic
from common.utils.manifest import now
from common.utils.paths import display_path, folder_of, get_tokenizers_dir

_REPORT_CHARACTERS = 10_000_000  # of held-out text
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class TokenizerReport:
    """Metrics on held-out text.

    Args:
        coverage: fraction of characters in the vocabulary.
        unknown_rate: fraction of tokens for text missing from the vocabulary (bytes, `<unk>`).
        vocab_used: fraction of the vocabulary that occurs.
        round_trip: whether every document decodes to itself.
    """

    num_documents: int
    num_characters: int
    num_tokens: int
    coverage: float
    unknown_rate: float
    tokens_per_word: float
    tokens_per_byte: float
    bytes_per_token: float
    vocab_used: float
    round_trip: bool
    mb_per_second: float


def train_tokenizer(
    config: DataConfig, name: str, *, holdout: float = 0.05
) -> tuple[Path, TokenizerReport]:
    """Train `config.tokenizer` with `config.vocab_size` on the source of `config`.

    It is saved as assets/tokenizers/<name>: tokenizer.json and manifest.json. The report uses a
    fraction `holdout` of the documents, drawn with `config.seed`, or the end of a single document.

    Raises:
        DataError: the kind cannot be trained, the source has no text, or the tokenizer `name`
            exists.
    """
    if config.tokenizer not in TRAINABLE:
        raise DataError(
            f"a {config.tokenizer} tokenizer cannot be trained", did_you_mean("", [*TRAINABLE])
        )
    folder = folder_of(get_tokenizers_dir(), name)
    if folder.exists():
        raise _taken(folder)
    corpus = open_corpus(config)
    started = time.monotonic()
    with reading_progress(f"{name}: learning the vocabulary") as watch:
        documents = _part(corpus, watch(corpus.documents()), "train", holdout, config.seed)
        tokenizer = TRAINABLE[config.tokenizer].train(training_texts(documents), config.vocab_size)
    seconds = time.monotonic() - started
    if tokenizer.vocab_size < 2:
        raise DataError(f"{corpus.name} has no text", "choose another data.path or dataset")
    held_out = _part(corpus, corpus.documents(), "val", holdout, config.seed)
    report = evaluate_tokenizer(tokenizer, training_texts(held_out, _REPORT_CHARACTERS))
    facts = {
        "name": name,
        "kind": config.tokenizer,
        "vocab_size": tokenizer.vocab_size,
        "loses": tokenizer.loses,
        "source": {"name": corpus.name, **corpus.fingerprint},
        "holdout": holdout,
        "seed": config.seed,
        "report": asdict(report),
        "seconds": round(seconds, 2),
    }
    try:
        with atomic_folder(folder) as building:
            tokenizer.save(building / "tokenizer.json")
            written = {"sha256": sha256_of(building / "tokenizer.json"), "created": now()}
            write_json_atomic(building / "manifest.json", facts | written)
    except OSError as error:
        if folder.exists():  # another process was first
            raise _taken(folder) from error
        raise
    return folder, report


def _taken(folder: Path) -> DataError:
    return DataError(
        f"a tokenizer '{folder.name}' already exists, and may be in use",
        f"choose another name, or delete {display_path(folder)}",
    )


def _part(
    corpus: Corpus, documents: Iterator[Document], part: str, holdout: float, seed: int
) -> Iterator[Document]:
    """The documents for training (`train`) or evaluation (`val`), ignoring their own split."""
    unsplit = (Document(d.key, d.text, ends=d.ends) for d in documents)
    split = split_documents(corpus, unsplit, split_by="document", val_fraction=holdout, seed=seed)
    return (document for document in split if document.split == part)


def evaluate_tokenizer(tokenizer: Tokenizer, texts: Iterable[str]) -> TokenizerReport:
    """Evaluate `tokenizer` on `texts`. Raises DataError if there are none."""
    num_documents = num_characters = num_bytes = num_words = 0
    num_tokens = num_unknown = num_covered = 0
    used = np.zeros(tokenizer.vocab_size, dtype=np.bool_)
    round_trip, seconds = True, 0.0
    for text in texts:
        known = _known(tokenizer, text)
        started = time.perf_counter()
        ids = tokenizer.encode(known)
        seconds += time.perf_counter() - started
        unknown = tokenizer.is_unknown(ids)
        num_documents += 1
        num_characters += len(text)
        num_bytes += len(text.encode("utf-8", "surrogatepass"))
        num_words += sum(1 for _ in _WORD.finditer(text))
        num_tokens += len(ids)
        num_unknown += int(unknown.sum()) + len(text) - len(known)
        num_covered += len(known) - int(tokenizer.token_bytes[ids[unknown]].sum())
        used[ids] = True
        round_trip = round_trip and tokenizer.decode(ids.tolist()) == text
    if not num_characters:
        raise DataError("no held-out text to evaluate the tokenizer", "provide more text")
    return TokenizerReport(
        num_documents,
        num_characters,
        num_tokens,
        coverage=max(0.0, num_covered / num_characters),
        unknown_rate=num_unknown / max(1, num_tokens),
        tokens_per_word=num_tokens / max(1, num_words),
        tokens_per_byte=num_tokens / num_bytes,
        bytes_per_token=num_bytes / max(1, num_tokens),
        vocab_used=float(used.mean()),
        round_trip=round_trip,
        mb_per_second=num_bytes / 1e6 / max(seconds, 1e-9),
    )


def _known(tokenizer: Tokenizer, text: str) -> str:
    """Remove characters that a char tokenizer refuses; they count as unknown."""
    if not isinstance(tokenizer, CharTokenizer):
        return text
    known = {*tokenizer.characters}
    return text if known >= {*text} else "".join([c for c in text if c in known])
