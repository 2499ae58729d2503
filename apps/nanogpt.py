"""Write token files for nanoGPT: `meta.pkl` beside `train.bin` and `val.bin`, whose format is the same."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from common.data.tokenizers import CharTokenizer, Tokenizer
from common.errors import DataError
from common.utils.files import atomic_path


def write_meta(folder: Path, tokenizer: Tokenizer) -> Path:
    """Write `meta.pkl` beside token files, for nanoGPT's train.py and sample.py.

    Raises DataError for a vocabulary that does not fit 16 bits.
    """
    if tokenizer.vocab_size > 2**16:
        raise DataError(
            f"nanoGPT reads tokens of 16 bits; this vocabulary has {tokenizer.vocab_size:,}",
            "use a smaller data.vocab_size",
        )
    meta: dict[str, Any] = {"vocab_size": tokenizer.vocab_size}
    if isinstance(tokenizer, CharTokenizer):
        letters = ["", *tokenizer.characters]  # 0 is end of text
        meta["itos"] = dict(enumerate(letters))
        meta["stoi"] = {letter: i for i, letter in enumerate(letters) if i}
    with atomic_path(folder / "meta.pkl") as path:
        path.write_bytes(pickle.dumps(meta))
    return folder / "meta.pkl"
