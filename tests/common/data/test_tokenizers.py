"""Text -> ids -> text, for any text there is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.data.tokenizers import (
    END_OF_TEXT,
    BPETokenizer,
    CharTokenizer,
    Tokenizer,
    load_tokenizer,
)
from common.errors import DataError
from tests.budget import examples

CORPUS = [
    "the cat sat on the mat.\n" * 20,
    "def f(x):\n    return x + 1\n" * 20,
    "naïve café 日本語 🙂",
] * 3
BPE = BPETokenizer.train(CORPUS, 300)
CHAR = CharTokenizer.train(CORPUS)
# Text full of what tokenizers stumble on: their own special tokens, spaces, combining characters.
pieces = st.sampled_from(
    [
        END_OF_TEXT,
        "<|",
        "<|never|>",
        "endoftext",
        "|>",
        " ",
        "\n",
        "\r\n",
        "\0",
        "\ufeff",
        "e\u0301",
        "👩‍👩‍👧",
        "Ġ",
        "the",
    ]
)
texts = st.lists(pieces | st.text(max_size=10), max_size=8).map("".join)


@given(texts)
@examples(200)
def test_bpe_gives_back_any_text_and_counts_its_bytes(text: str) -> None:
    ids = BPE.encode(text)
    assert ids.dtype == np.int64 and ids.ndim == 1
    assert BPE.decode(ids.tolist()) == text
    assert BPE.token_bytes[ids].sum() == len(text.encode())
    assert BPE.end_of_text not in ids, "the border of a document is never read from text"


@given(st.text(alphabet="".join(CHAR.characters), max_size=30))
@examples(100)
def test_char_gives_back_any_text_it_knows_one_token_per_character(text: str) -> None:
    ids = CHAR.encode(text)
    assert len(ids) == len(text) and ids.dtype == np.int64
    assert CHAR.decode(ids.tolist()) == text
    assert CHAR.token_bytes[ids].sum() == len(text.encode())
    assert CHAR.end_of_text not in ids


@given(st.lists(texts, max_size=5))
@examples(30)
def test_a_batch_is_its_texts_one_by_one(batch: list[str]) -> None:
    for text, ids in zip(batch, BPE.encode_batch(batch), strict=True):
        assert ids.tolist() == BPE.encode(text).tolist()


@pytest.mark.parametrize("character", ["ź"[1], "Ω", "\0", "\uffff", "𝄞", "~"])
def test_char_names_a_character_it_does_not_know(character: str) -> None:
    with pytest.raises(DataError, match=f"U\\+{ord(character):04X}") as caught:
        CHAR.encode(f"the {character} cat")
    assert "bpe" in caught.value.hint
    with pytest.raises(DataError):
        CharTokenizer.train([]).encode(character)
    assert CharTokenizer.train([]).encode("").tolist() == []


def test_char_ids_follow_the_order_of_the_code_points_after_the_special_token() -> None:
    tokenizer = CharTokenizer.train(["cab", "b\n"])
    assert tokenizer.encode("\nabc").tolist() == [1, 2, 3, 4]
    assert tokenizer.vocab_size == 5 and tokenizer.special_tokens == {END_OF_TEXT: 0}
    assert tokenizer.decode([0, 2, 0, 3]) == "ab", "special tokens are left out"


def test_bpe_leaves_special_tokens_out_of_the_text_but_counts_them_in_the_vocabulary() -> None:
    ids = [*BPE.encode("a"), BPE.end_of_text, *BPE.encode("b")]
    assert BPE.decode(ids) == "ab"
    assert BPE.token_bytes.shape == (BPE.vocab_size,)
    assert BPE.token_bytes[BPE.end_of_text] == 0
    assert (BPE.token_bytes > 0).sum() == BPE.vocab_size - len(BPE.special_tokens)
    assert BPE.vocab_size == 300


@pytest.mark.parametrize("size", [257, 258, 300])
def test_bpe_learns_at_most_the_vocabulary_asked_for(size: int) -> None:
    assert BPETokenizer.train(CORPUS, size).vocab_size == size
    assert BPETokenizer.train(["ab"], size).vocab_size <= size  # nothing more to learn
    tokenizer = BPETokenizer.train([], size)
    assert tokenizer.decode(tokenizer.encode("日本").tolist()) == "日本"


def test_bpe_merges_what_is_frequent() -> None:
    assert len(BPE.encode(" the cat")) < len(" the cat")


def test_training_twice_gives_the_same_vocabulary() -> None:
    again = BPETokenizer.train(iter(CORPUS), 300)
    assert again.tokenizer.get_vocab() == BPE.tokenizer.get_vocab()


@pytest.mark.parametrize("tokenizer", [BPE, CHAR], ids=["bpe", "char"])
def test_a_saved_tokenizer_is_read_back_identical(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    back = load_tokenizer(path)
    assert type(back) is type(tokenizer) and back.vocab_size == tokenizer.vocab_size
    assert back.special_tokens == tokenizer.special_tokens
    assert back.token_bytes.tolist() == tokenizer.token_bytes.tolist()
    for text in [*CORPUS, "the naïve cat\n"]:
        assert back.encode(text).tolist() == tokenizer.encode(text).tolist()
    back.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()
    ids = [list(range(tokenizer.vocab_size))]
    assert [back.decode([i]) for i in ids[0]] == [tokenizer.decode([i]) for i in ids[0]]


def test_text_that_holds_the_special_token_is_still_text_after_loading(tmp_path: Path) -> None:
    BPE.save(tmp_path / "t.json")
    back = load_tokenizer(tmp_path / "t.json")
    text = f"a{END_OF_TEXT}b"
    assert back.end_of_text not in back.encode(text)
    assert back.decode(back.encode(text).tolist()) == text


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "3",
        "null",
        "{}",
        '{"type": "char"}',
        '{"type": "char", "characters": 5}',
        '{"type": "word"}',
        '{"model": 3}',
        '{"model": {"type": "WordPiece"}}',
        '{"model": {"type": "BPE"}}',
        '{"model": {"type": "BPE", "vocab": {}, "merges": [["a", "b"]]}}',
    ],
)
def test_a_damaged_file_is_named(content: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        load_tokenizer(path)


def test_a_bpe_file_cut_anywhere_is_named(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    BPE.save(path)
    whole = path.read_text(encoding="utf-8")
    for cut in range(0, len(whole), len(whole) // 20):
        path.write_text(whole[:cut], encoding="utf-8")
        with pytest.raises(DataError, match=r"tokenizer\.json"):
            load_tokenizer(path)
    with pytest.raises(DataError, match=r"nothing\.json"):
        load_tokenizer(tmp_path / "nothing.json")


def test_a_bpe_file_without_the_special_token_is_refused_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    BPE.save(path)
    content = json.loads(path.read_text(encoding="utf-8"))
    content["added_tokens"] = []
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DataError, match="endoftext"):
        load_tokenizer(path)
