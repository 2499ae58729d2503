"""Our tokenizers as files that `transformers.AutoTokenizer` reads."""

from __future__ import annotations

from pathlib import Path

import tokenizers as hf

from common.data.tokenizers import END_OF_TEXT, BPETokenizer, CharTokenizer, Tokenizer
from common.errors import DataError
from common.utils.files import write_json_atomic, write_text_atomic


def save_hub_tokenizer(tokenizer: Tokenizer, folder: Path, context_length: int | None) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`; the ids of every text stay the same.

    As with us, `<|endoftext|>` in a text is ordinary text: `split_special_tokens` says so.
    Raises DataError for a tokenizer of another kind than `char` and `bpe`.
    """
    if isinstance(tokenizer, CharTokenizer):
        write_text_atomic(folder / "tokenizer.json", _char_tokenizer(tokenizer).to_str())
    elif isinstance(tokenizer, BPETokenizer):
        tokenizer.save(folder / "tokenizer.json")
    else:
        raise DataError(
            f"a {type(tokenizer).__name__} cannot be written for transformers",
            "export the model without it; char and bpe can be written",
        )
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
    }
    if context_length is not None:
        config["model_max_length"] = context_length
    write_json_atomic(folder / "tokenizer_config.json", config)


def _char_tokenizer(tokenizer: CharTokenizer) -> hf.Tokenizer:
    """A word for each character; like ours it has no word for what is unknown, and says so."""
    if any("\ud800" <= character <= "\udfff" for character in tokenizer.characters):
        raise DataError("a vocabulary with half of a surrogate pair cannot be written as UTF-8")
    words = {END_OF_TEXT: 0} | {c: index for index, c in enumerate(tokenizer.characters, 1)}
    found = hf.Tokenizer(hf.models.WordLevel(words, unk_token="none"))
    found.pre_tokenizer = hf.pre_tokenizers.Split(hf.Regex(r"[\s\S]"), "isolated")
    found.decoder = hf.decoders.Fuse()
    found.add_special_tokens([END_OF_TEXT])
    return found
