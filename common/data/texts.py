"""Encode other texts with the tokenizer of a run, for evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from common.data.config import DataConfig
from common.data.corpora import open_corpus
from common.data.documents import Corpus
from common.data.token_files import Tokens
from common.data.tokenizers import Tokenizer
from common.errors import ConfigError, DataError


def read_texts(
    paths: Sequence[Path], tokenizer: Tokenizer, taken: Sequence[str] = ()
) -> dict[str, Tokens]:
    """Return the tokens of each text by file name, or by path if the name is taken.

    The documents of a folder are joined by end-of-text tokens, as in training.
    Raises DataError for a text that is missing, empty or cannot be encoded, and ConfigError for
    duplicates.
    """
    sets: dict[str, Tokens] = {}
    for path in paths:
        title = path.name if path.name not in {*taken, *sets, ""} else str(path)
        if title in {*taken, *sets}:
            raise ConfigError(f"{path} is given twice")
        sets[title] = _read_text(path, tokenizer)
    return sets


def _read_text(path: Path, tokenizer: Tokenizer) -> Tokens:
    if not path.exists():
        raise DataError(f"no such file or folder: {path}", "pass a text file, or a folder of them")
    parts: list[Tokens] = []
    for text in _whole_documents(open_corpus(DataConfig(path=path))):
        try:
            ids = tokenizer.encode(text)
        except DataError as error:
            raise DataError(
                f"cannot evaluate {path}: {error.message}",
                "this run knows only the characters of its training text; "
                "a run with data.tokenizer=bpe reads any text",
            ) from error
        end = [[tokenizer.end_of_text]] if parts else []
        parts += [np.concatenate([*end, ids]).astype(np.uint32)]
    tokens = np.concatenate(parts)
    if len(tokens) < 2:
        raise DataError(f"{path} has {len(tokens)} tokens: nothing to predict")
    return tokens


def _whole_documents(corpus: Corpus) -> Iterator[str]:
    parts: list[str] = []
    for document in corpus.documents():
        parts.append(document.text)
        if document.ends:
            yield "".join(parts)
            parts = []
