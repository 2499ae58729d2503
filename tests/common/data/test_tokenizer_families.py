"""Every kind of tokenizer keeps the one contract: round trips, borders, sizes, files."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import tokenizers as hf
from hypothesis import given
from hypothesis import strategies as st

from apps.export.hub_tokenizer import save_hub_tokenizer
from common.data.tokenizers import (
    END_OF_TEXT,
    BPETokenizer,
    CharTokenizer,
    PretrainedTokenizer,
    SentencePieceBPETokenizer,
    SentencePieceTokenizer,
    TiktokenTokenizer,
    Tokenizer,
    find_tokenizer,
    load_tokenizer,
)
from common.data.tokenizers.base import last_word_border
from common.data.tokenizers.fast_bpe import FastBPE
from common.data.tokenizers.patterns import CL100K, GPT2, KNOWN, O200K
from common.errors import DataError
from common.utils.paths import REPOSITORY_ROOT, get_tokenizers_dir
from tests.budget import examples

WORDS = "the quick brown fox's jumped over 1234 lazy dogs, naïve café; don't! x=y+1\n\tdef f(x):\n"
TEXTS = [(WORDS * 3)[i : i + 90] for i in range(0, 180, 7)] * 4


def tiktoken_like(bpe: BPETokenizer, pattern: str) -> TiktokenTokenizer:
    fast = FastBPE.of(json.loads(bpe.tokenizer.to_str()))
    assert fast is not None
    ranks = {token: i - 1 for token, i in fast._encoding._mergeable_ranks.items()}
    return TiktokenTokenizer("test", pattern, ranks, {END_OF_TEXT: len(ranks)})


BPE = BPETokenizer.train(TEXTS, 400)
LOSSLESS: dict[str, Tokenizer] = {
    "bpe": BPE,
    "tiktoken": tiktoken_like(BPE, GPT2),
    "tiktoken, cl100k": tiktoken_like(BPE, CL100K),
    "tiktoken, o200k": tiktoken_like(BPE, O200K),
}
PIECES: dict[str, Tokenizer] = {
    "unigram": SentencePieceTokenizer.train(TEXTS, 400),
    "sentencepiece bpe": SentencePieceBPETokenizer.train(TEXTS, 400),
}
EVERY = LOSSLESS | PIECES
any_text = st.lists(
    st.sampled_from(
        [" ", "  ", "\n", "\r\n", "\t", "the", "n't", "12", "!", "\0", END_OF_TEXT, "é"]
    )
    | st.text(max_size=8),
    max_size=12,
).map("".join)


@pytest.mark.parametrize("name", LOSSLESS)
@given(text=any_text)
@examples(150)
def test_any_text_comes_back(name: str, text: str) -> None:
    tokenizer = LOSSLESS[name]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids.tolist()) == text and not tokenizer.loses
    assert tokenizer.token_bytes[ids].sum() == len(text.encode())
    assert tokenizer.end_of_text not in ids


@pytest.mark.parametrize("name", PIECES)
@given(text=any_text)
@examples(150)
def test_what_sentencepiece_loses_is_what_it_says(name: str, text: str) -> None:
    tokenizer = PIECES[name]
    ids = tokenizer.encode(text)
    assert "U+2581" in tokenizer.loses
    assert tokenizer.decode(ids.tolist()) == text.replace("\u2581", " ")
    if "\u2581" not in text:
        assert tokenizer.token_bytes[ids].sum() == len(text.encode())
    assert tokenizer.end_of_text not in ids


@pytest.mark.parametrize("name", EVERY)
@given(text=any_text, rest=any_text)
@examples(150)
def test_the_ids_of_both_sides_of_a_border_are_those_of_the_whole(
    name: str, text: str, rest: str
) -> None:
    tokenizer = EVERY[name]
    border = tokenizer.last_border(text)
    assert 0 <= border <= len(text)
    if border:
        whole = text + rest
        parts = [tokenizer.encode(whole[:border]), tokenizer.encode(whole[border:])]
        assert np.concatenate(parts).tolist() == tokenizer.encode(whole).tolist()


def test_the_last_border_is_found_far_from_the_end() -> None:
    assert last_word_border("a b" + "c" * 5000) == 1
    assert last_word_border("ab" * 3000) == 0
    assert last_word_border("a" + " " * 5000) == 1, "where the run of spaces begins"
    assert last_word_border(" ab") == 0


@given(texts=st.lists(any_text | st.text(st.characters(max_codepoint=0x2FFF)), max_size=20))
@examples(200)
def test_tiktokens_engine_gives_the_ids_of_tokenizers(texts: list[str]) -> None:
    expected = BPE.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    assert BPE._fast is not None
    assert [BPE._fast.encode(text).tolist() for text in texts] == [e.ids for e in expected]


def test_the_engine_is_not_used_where_the_ids_could_differ() -> None:
    content = json.loads(BPE.tokenizer.to_str())
    assert FastBPE.of(content) is not None
    assert FastBPE.of(content | {"normalizer": {"type": "Lowercase"}}) is None
    prefixed = content["pre_tokenizer"] | {"add_prefix_space": True}
    assert FastBPE.of(content | {"pre_tokenizer": prefixed}) is None
    model = content["model"]
    swapped = [model["merges"][1], model["merges"][0], *model["merges"][2:]]
    assert FastBPE.of(content | {"model": model | {"merges": swapped}}) is None
    # `abc` can only be made of `a` and `bc` here; tiktoken would also join `ab` and `c`.
    letters = {letter: i for letter, i in model["vocab"].items() if len(letter) == 1}
    ids = letters | {"ab": 500, "bc": 501, "abc": 502}
    odd = model | {"vocab": ids, "merges": [["a", "b"], ["b", "c"], ["a", "bc"]]}
    assert FastBPE.of(content | {"model": odd, "added_tokens": []}) is None


@pytest.mark.parametrize("name", EVERY)
def test_a_saved_one_gives_the_same_ids(name: str, tmp_path: Path) -> None:
    EVERY[name].save(tmp_path / "tokenizer.json")
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    assert loaded.encode(WORDS).tolist() == EVERY[name].encode(WORDS).tolist()
    assert loaded.vocab_size == EVERY[name].vocab_size
    assert loaded.end_of_text == EVERY[name].end_of_text
    assert loaded.token_bytes.tolist() == EVERY[name].token_bytes.tolist()


def foreign_tokenizer() -> hf.Tokenizer:
    """Of another make: it lowers letters, cuts at spaces and knows few words."""
    tokenizer = hf.Tokenizer(
        hf.models.WordLevel({"the": 0, "fox": 1, "<unk>": 2, "</s>": 3}, "<unk>")
    )
    tokenizer.normalizer = hf.normalizers.Lowercase()
    tokenizer.pre_tokenizer = hf.pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    return tokenizer


def test_a_foreign_tokenizer_is_read_from_a_folder_and_says_what_it_loses(tmp_path: Path) -> None:
    foreign_tokenizer().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "</s>"}}')
    tokenizer = find_tokenizer(str(tmp_path))
    assert isinstance(tokenizer, PretrainedTokenizer)
    ids = tokenizer.encode("The FOX </s> quux")
    assert ids.tolist()[:2] == [0, 1] and tokenizer.end_of_text == 3
    assert 3 not in ids, "a special token is not read from text"
    assert (
        tokenizer.is_unknown(ids).tolist()[:2] == [False, False] and tokenizer.is_unknown(ids)[-1]
    )
    assert "Lowercase" in tokenizer.loses and tokenizer.last_border("a b") == 0
    tokenizer.save(tmp_path / "again.json")
    assert load_tokenizer(tmp_path / "again.json").encode("the fox").tolist() == [0, 1]


def test_a_trained_tokenizer_is_found_by_its_name() -> None:
    CharTokenizer.train(["abc"]).save(get_tokenizers_dir() / "letters" / "tokenizer.json")
    assert find_tokenizer("letters").encode("cab").tolist() == [3, 1, 2]
    with pytest.raises(DataError, match="no tokenizer 'leters'") as error:
        find_tokenizer("leters")
    assert "letters" in error.value.hint


def test_a_sentencepiece_model_of_a_folder_is_read(tmp_path: Path) -> None:
    unigram = PIECES["unigram"]
    assert isinstance(unigram, SentencePieceTokenizer)
    (tmp_path / "tokenizer.model").write_bytes(unigram._model)
    assert find_tokenizer(str(tmp_path)).encode(WORDS).tolist() == unigram.encode(WORDS).tolist()


def test_a_space_is_one_byte_also_where_the_vocabulary_was_learned_without() -> None:
    sentences = ["日本語のテキスト", "これは文です", "犬と猫"] * 20
    text = "日本 語  a これは\n"
    for kind in (SentencePieceTokenizer, SentencePieceBPETokenizer):
        tokenizer = kind.train(sentences, 400)
        ids = tokenizer.encode(text)
        assert (
            tokenizer.token_bytes[ids].sum() == len(text.encode())
            and "space:" not in tokenizer.loses
        )
        assert tokenizer.decode(ids.tolist()) == text


def test_a_model_of_somebody_elses_without_a_space_says_what_it_counts() -> None:
    """As earlier versions trained them."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["日本語のテキスト", "これは文です", "犬と猫"] * 20),
        model_writer=model,
        vocab_size=400,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    tokenizer = SentencePieceTokenizer(model.getvalue())
    assert tokenizer.token_bytes[tokenizer.encode(" ")].sum() == 3
    assert "no space: each counts as three bytes" in tokenizer.loses


def test_a_long_text_is_encoded_as_its_beginning() -> None:
    """The package adds up scores in float32, whose digits do not suffice for half a million tokens."""
    text = (REPOSITORY_ROOT / "README.md").read_text(encoding="utf-8")
    tokenizer = SentencePieceTokenizer.train([text], 900)
    times = 2_000_000 // len(text)
    assert tokenizer.encode(text * times).tolist() == tokenizer.encode(text).tolist() * times
    assert tokenizer.encode(WORDS).tolist() == tokenizer._processor.encode(WORDS)


@pytest.mark.parametrize("pattern", sorted(KNOWN))
@given(
    text=st.text(st.sampled_from("aA1234 \n\r\t'sLl!/-é\u0301ǅⅫ\u2028\xa0\u017f日"), max_size=24)
    | any_text
)
@examples(100)
def test_an_encoding_is_written_for_transformers_with_the_same_ids(pattern: str, text: str) -> None:
    tokenizer = WRITTEN[pattern]
    assert tokenizer._other_engine.encode(text).ids == tokenizer.encode(text).tolist()


WRITTEN = {pattern: tiktoken_like(BPE, pattern) for pattern in KNOWN}


def test_an_encoding_with_a_pattern_of_its_own_is_neither_cut_nor_written() -> None:
    tokenizer = tiktoken_like(BPE, r"\w+|\s")
    assert tokenizer.last_border("the fox") == 0 and "pattern" in tokenizer.loses
    with pytest.raises(DataError, match="unknown word pattern"):
        save_hub_tokenizer(tokenizer, Path("unused"), None)


@pytest.mark.parametrize("name", LOSSLESS)
def test_more_spaces_than_a_regular_expression_can_take_are_encoded(name: str) -> None:
    text = "a" + " " * 400_000 + "b"
    tokenizer = LOSSLESS[name]
    ids = tokenizer.encode(text)
    assert tokenizer.token_bytes[ids].sum() == len(text)
    assert tokenizer.decode(ids.tolist()) == text


@pytest.mark.parametrize("name", LOSSLESS)
def test_half_of_a_surrogate_pair_is_named(name: str) -> None:
    with pytest.raises(DataError, match=r"U\+DCE9\) at character 3"):
        LOSSLESS[name].encode("caf\udce9")


class Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("executed",))


HOSTILE = {
    "a pickle": pickle.dumps(Bomb()),
    "brackets": b"[" * 200_000,
    "a list": b"[]",
    "no characters": b'{"type": "char", "characters": 5}',
    "no model": b'{"type": "sentencepiece", "model": "AAAA"}',
    "not base64": b'{"type": "sentencepiece", "model": "%%%"}',
    "twice": b'{"type": "tiktoken", "name": "x", "pattern": ".", "special_tokens": {}, "tokens": ["YQ==", "YQ=="]}',
    "a wrong pattern": json.dumps(
        {
            "type": "tiktoken",
            "name": "x",
            "pattern": "(",
            "special_tokens": {END_OF_TEXT: 256},
            "tokens": [__import__("base64").b64encode(bytes([b])).decode() for b in range(256)],
        }
    ).encode(),
    "an unknown model": b'{"model": {"type": "Evil", "vocab": {}}, "added_tokens": []}',
    "merges of nothing": b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["x", "y"]]}, "added_tokens": []}',
    "a deep object": b'{"a":' * 100_000,
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_file_is_refused_and_nothing_is_executed(
    what: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tokenizer.json").write_bytes(HOSTILE[what])
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path / "tokenizer.json")
    assert "executed" not in capfd.readouterr().out


def test_an_unknown_encoding_is_named() -> None:
    with pytest.raises(DataError, match="no encoding 'gtp2'") as error:
        TiktokenTokenizer.named("gtp2")
    assert "gpt2" in error.value.hint


@pytest.mark.parametrize("in_config", [True, False, None])
@pytest.mark.parametrize("in_file", [True, False])
@pytest.mark.parametrize("kind", ["GPT2Tokenizer", "Qwen2TokenizerFast", "PreTrainedTokenizerFast"])
def test_a_space_before_texts_is_that_of_transformers_or_refused(
    kind: str, in_file: bool, in_config: bool | None, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    made = BPETokenizer.train(["the cat sat on the mat and the dog saw it\n" * 20], 300)
    content = json.loads(made.tokenizer.to_str())
    content["pre_tokenizer"]["add_prefix_space"] = in_file
    settings = {"tokenizer_class": kind, "add_prefix_space": in_config}
    settings = {key: value for key, value in settings.items() if value is not None}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    theirs = AutoTokenizer.from_pretrained(tmp_path)("the cat sat")["input_ids"]
    try:
        ours = load_tokenizer(tmp_path / "tokenizer.json").encode("the cat sat").tolist()
    except DataError as error:
        assert "add_prefix_space" in error.message and in_file is not bool(in_config)
    else:
        assert ours == theirs
