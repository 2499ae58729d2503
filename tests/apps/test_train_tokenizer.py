"""A vocabulary, and figures about it that come from text it has not seen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from apps.train_tokenizer import evaluate_tokenizer, train_tokenizer
from common.data.config import DataConfig
from common.data.corpora import open_corpus
from common.data.tokenizers import CharTokenizer, find_tokenizer
from common.errors import ConfigError, DataError
from common.utils.paths import get_assets_dir


def test_the_report_counts_what_it_says() -> None:
    tokenizer = CharTokenizer.train(["ab "])
    report = evaluate_tokenizer(tokenizer, ["ab a", "axé b"])
    assert (report.num_documents, report.num_characters, report.num_tokens) == (2, 9, 7)
    assert report.coverage == pytest.approx(7 / 9) and report.unknown_rate == pytest.approx(2 / 7)
    assert report.tokens_per_word == pytest.approx(7 / 4)
    assert report.tokens_per_byte == pytest.approx(7 / 10)
    assert report.bytes_per_token == pytest.approx(10 / 7)
    assert report.vocab_used == pytest.approx(3 / 4) and not report.round_trip


@pytest.mark.parametrize("kind", ["bpe", "char", "sentencepiece", "sentencepiece_bpe"])
@pytest.mark.parametrize("lone", [True, False])
def test_every_kind_is_trained_measured_and_found_by_name(
    kind: str, lone: bool, tmp_path: Path
) -> None:
    texts = [f"the cat number {i} sat on the mat, it's {i * 7} o'clock.\n" * 30 for i in range(40)]
    (tmp_path / "texts").mkdir()
    for i, text in enumerate(["".join(texts)] if lone else texts):
        (tmp_path / "texts" / f"{i}.txt").write_text(text)
    config = DataConfig(path=tmp_path / "texts", tokenizer=kind, vocab_size=330)
    folder, report = train_tokenizer(config, f"my_{kind}", holdout=0.2)
    assert report.round_trip and report.coverage == 1.0 and report.num_documents >= 1
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["report"]["num_tokens"] == report.num_tokens and manifest["kind"] == kind
    assert 0.1 < report.num_characters / len("".join(texts)) < 0.35, "of the part that was held out"
    tokenizer = find_tokenizer(f"my_{kind}")
    assert tokenizer.vocab_size == manifest["vocab_size"] <= 330
    assert tokenizer.decode(tokenizer.encode(texts[0]).tolist()) == texts[0]


def test_what_is_held_out_is_not_learned_from(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("a" * 900 + "b" * 100)
    config = DataConfig(path=tmp_path / "text.txt", tokenizer="char")
    folder, report = train_tokenizer(config, "letters", holdout=0.1)
    tokenizer = find_tokenizer(str(folder))
    assert isinstance(tokenizer, CharTokenizer) and tokenizer.characters == ["a"]
    assert report.coverage == 0.0


def test_what_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a tiktoken tokenizer cannot be trained"):
        train_tokenizer(DataConfig(dataset="stories", tokenizer="tiktoken"), "x")
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(DataError, match="no text"):
        train_tokenizer(DataConfig(path=tmp_path / "empty.txt", tokenizer="char"), "x")


@pytest.mark.parametrize("name", ["../models/x", "", ".", "..", ".hidden", "a/b", "/tmp/x", "a\n"])
def test_a_name_that_leads_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="is not a valid folder name"):
        train_tokenizer(DataConfig(dataset="stories", num_stories=20, tokenizer="char"), name)
    with pytest.raises(ConfigError, match="is not a valid folder name"):
        open_corpus(DataConfig(dataset=name))
    assert not get_assets_dir().exists()


def test_a_tokenizer_is_never_replaced() -> None:
    config = DataConfig(dataset="stories", num_stories=20, tokenizer="char")
    folder, _ = train_tokenizer(config, "mine")
    before = (folder / "tokenizer.json").read_bytes()
    with pytest.raises(DataError, match="a tokenizer 'mine' already exists"):
        train_tokenizer(config.model_copy(update={"num_stories": 30}), "mine")
    assert (folder / "tokenizer.json").read_bytes() == before
    assert [path.name for path in folder.parent.iterdir()] == ["mine"]
