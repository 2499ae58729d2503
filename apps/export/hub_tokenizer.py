"""Save our tokenizers for `transformers.AutoTokenizer`."""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers as hf

from common.data.tokenizers import (
    END_OF_TEXT,
    BPETokenizer,
    CharTokenizer,
    PretrainedTokenizer,
    TiktokenTokenizer,
    Tokenizer,
)
from common.data.tokenizers.byte_level import tokenizer_of_ranks
from common.errors import DataError
from common.utils.files import write_json_atomic, write_text_atomic


def save_hub_tokenizer(tokenizer: Tokenizer, folder: Path, context_length: int | None) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`; the ids of every text are unchanged.

    As here, `<|endoftext|>` in a text is ordinary text, by `split_special_tokens`.
    Raises DataError for tokenizers that the format cannot represent.
    """
    end_of_text = _end_of_text(tokenizer)
    write_text_atomic(folder / "tokenizer.json", _convert(tokenizer).to_str())
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": end_of_text,
        "eos_token": end_of_text,
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
    }
    if context_length is not None:
        config["model_max_length"] = context_length
    write_json_atomic(folder / "tokenizer_config.json", config)


def _end_of_text(tokenizer: Tokenizer) -> str:
    ends = {i: text for text, i in tokenizer.special_tokens.items()}
    return ends[tokenizer.end_of_text]


def _convert(tokenizer: Tokenizer) -> hf.Tokenizer:
    if isinstance(tokenizer, CharTokenizer):
        return _char_tokenizer(tokenizer)
    if isinstance(tokenizer, BPETokenizer | PretrainedTokenizer):
        content = json.loads(tokenizer.tokenizer.to_str())
        # Remove steps that add special tokens around a text, which the model was not trained with.
        return hf.Tokenizer.from_str(json.dumps(content | {"post_processor": None}))
    if isinstance(tokenizer, TiktokenTokenizer):
        return tokenizer_of_ranks(tokenizer.ranks, tokenizer.pattern, tokenizer.special_tokens)
    raise DataError(
        f"a {type(tokenizer).__name__} cannot be written for transformers",
        "export the model without it; supported: char, bpe, tiktoken and a tokenizer.json",
    )


def _char_tokenizer(tokenizer: CharTokenizer) -> hf.Tokenizer:
    """One token per character, without an unknown token like ours."""
    if any("\ud800" <= character <= "\udfff" for character in tokenizer.characters):
        raise DataError("a vocabulary with half of a surrogate pair cannot be written as UTF-8")
    words = {END_OF_TEXT: 0} | {c: index for index, c in enumerate(tokenizer.characters, 1)}
    found = hf.Tokenizer(hf.models.WordLevel(words, unk_token="none"))
    found.pre_tokenizer = hf.pre_tokenizers.Split(hf.Regex(r"[\s\S]"), "isolated")
    found.decoder = hf.decoders.Fuse()
    found.add_special_tokens([END_OF_TEXT])
    return found
