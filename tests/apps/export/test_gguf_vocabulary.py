"""Vocabularies for GGUF, against Hugging Face tokenizers and tiktoken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers as hf

from apps.export.gguf_vocabulary import (
    CONTROL,
    NORMAL,
    SPLITTERS,
    UNUSED,
    merges_of_ranks,
    to_letters,
    vocabulary_of,
    vocabulary_of_ranks,
)
from common.data.tokenizers import BPETokenizer
from common.errors import ModelError


class Saved:
    """A tokenizer that was changed on its way to the file."""

    def __init__(self, tokenizer: BPETokenizer, **changes: Any) -> None:
        self.tokenizer, self.changes = tokenizer, changes

    @property
    def end_of_text(self) -> int:
        return self.tokenizer.end_of_text

    def save(self, path: Path) -> None:
        self.tokenizer.save(path)
        content = json.loads(path.read_text())
        model = {**content["model"], **self.changes.pop("model", {})}
        path.write_text(json.dumps({**content, **self.changes, "model": model}))


def split_by(pattern: str) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [{**split, "invert": False}, byte_level]}


def test_byte_alphabet_is_that_of_hugging_face() -> None:
    assert set(to_letters(bytes(range(256)))) == set(hf.pre_tokenizers.ByteLevel.alphabet())
    assert to_letters(b" \n\x00\xad\xff") == "\u0120\u010a\u0100\u0143\u00ff"


def test_tokens_have_their_ids_and_types(tokenizer: BPETokenizer) -> None:
    vocabulary = vocabulary_of(tokenizer)
    assert vocabulary.splitter == "gpt-2"
    assert vocabulary.end_of_text == tokenizer.end_of_text
    assert len(vocabulary.tokens) == tokenizer.vocab_size
    for index, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True)):
        if index == tokenizer.end_of_text:
            assert (token, kind) == ("<|endoftext|>", CONTROL)
        else:
            assert kind == NORMAL
            assert hf.decoders.ByteLevel().decode([token]) == tokenizer.decode([index])
    padded = vocabulary.padded(len(vocabulary.tokens) + 3)
    assert padded.types[-3:] == [UNUSED] * 3 and len(set(padded.tokens)) == len(padded.tokens)


@pytest.mark.parametrize("pattern", SPLITTERS)
def test_splitters_are_recognised_by_their_pattern(pattern: str, tokenizer: BPETokenizer) -> None:
    name = SPLITTERS[pattern]
    ignore = {"ignore_merges": name == "llama-bpe"}
    saved = Saved(tokenizer, pre_tokenizer=split_by(pattern), model=ignore)
    assert vocabulary_of(saved).splitter == name


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"pre_tokenizer": split_by("[a-z]+")}, "does not support the pattern"),
        ({"pre_tokenizer": None}, "not byte-level"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "prepends a space"),
        ({"normalizer": {"type": "Lowercase"}}, "not normalise"),
        ({"model": {"type": "Unigram"}}, "'Unigram'"),
        ({"model": {"ignore_merges": True}}, "another order"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_llama_cpp_would_read_otherwise_is_refused(
    changes: dict[str, Any], reason: str, tokenizer: BPETokenizer
) -> None:
    with pytest.raises(ModelError, match=reason):
        vocabulary_of(Saved(tokenizer, **changes))


def test_ranks_of_tiktoken_give_the_merges_they_were_learnt_by(tokenizer: BPETokenizer) -> None:
    tiktoken = pytest.importorskip("tiktoken")
    ours = vocabulary_of(tokenizer)
    letters = {character: byte for byte, character in enumerate(to_letters(bytes(range(256))))}
    ranks = {
        bytes(letters[character] for character in token): index
        for index, token in enumerate(ours.tokens)
        if index != ours.end_of_text
    }
    pattern = next(pattern for pattern, name in SPLITTERS.items() if name == "gpt-2")
    special = {"<|endoftext|>": ours.end_of_text}
    theirs = vocabulary_of_ranks(ranks, pattern, special, ours.end_of_text)
    assert theirs == ours
    encoding = tiktoken.Encoding(
        "mine", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special
    )
    text = "the dog's birds, thesis catmat 99"
    assert encoding.encode_ordinary(text) == tokenizer.encode(text).tolist()


def test_ranks_that_no_merges_make_are_refused() -> None:
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"abc": 256}
    with pytest.raises(ModelError, match="b'abc' is not a merge"):
        merges_of_ranks(ranks)
