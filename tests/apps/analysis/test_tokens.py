"""What is shown for a token, over tokenizers that cut text in different ways."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.analysis.tokens import label, shown, token_texts, vocabulary_texts
from common.data.tokenizers import BPETokenizer, CharTokenizer
from tests.budget import examples

BPE = BPETokenizer.train(["the cat sat on the mat. the dog saw it. " * 20], 300)


@examples(100)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_the_texts_of_tokens_joined_are_the_text(text: str) -> None:
    ids = BPE.encode(text).tolist()
    texts = token_texts(BPE, ids)
    assert len(texts) == len(ids) and "".join(texts) == text


def test_a_character_of_several_tokens_belongs_to_the_last_of_them() -> None:
    ids = BPE.encode("é 🦊").tolist()
    texts = token_texts(BPE, ids)
    assert texts == ["", "é", " ", "", "", "", "🦊"]


def test_special_tokens_add_nothing_to_the_text() -> None:
    end = BPE.end_of_text
    ids = [end, *BPE.encode("the").tolist(), end]
    assert token_texts(BPE, ids)[0] == token_texts(BPE, ids)[-1] == ""
    assert vocabulary_texts(BPE)[end] == "<|endoftext|>"


class DropsFirstSpace(BPETokenizer):
    """As SentencePiece does: the space that a text begins with is not written."""

    def decode(self, ids: Sequence[int]) -> str:
        return super().decode(ids).removeprefix(" ")


def test_a_space_that_decode_drops_at_the_start_is_not_lost() -> None:
    tokenizer = DropsFirstSpace(BPE.tokenizer)
    index = int(BPE.encode(" the")[0])
    assert BPE.decode([index]) == " the" and tokenizer.decode([index]) == "the"
    assert vocabulary_texts(tokenizer)[index] == " the"
    assert token_texts(tokenizer, BPE.encode("the the").tolist())[-1] == " the"


def test_the_vocabulary_has_a_text_for_every_token() -> None:
    texts = vocabulary_texts(BPE)
    sizes = BPE.token_bytes
    whole = [i for i, text in enumerate(texts) if "\ufffd" not in text and sizes[i]]
    assert len(texts) == BPE.vocab_size and len(whole) > 128
    assert np.array_equal([len(texts[i].encode()) for i in whole], sizes[whole])
    characters = CharTokenizer(["a", "\n"])
    assert vocabulary_texts(characters) == ["<|endoftext|>", "\n", "a"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" the\n\t", "␣the↵⇥"),
        ("\x00\x7f", "␀⟨7F⟩"),
        ("a\u202eb", "a⟨U+202E⟩b"),
        ("\ud800x", "\ufffdx"),
        ("\ufffd", "#7"),
        ("", "#7"),
        ("é👩‍🔬", "é👩‍🔬"),
    ],
)
def test_a_label_is_one_line_and_hides_nothing(text: str, expected: str) -> None:
    assert label(text, 7) == expected


def test_a_text_keeps_its_lines() -> None:
    assert shown("a\n\tb\r") == "a\n\tb␍"
