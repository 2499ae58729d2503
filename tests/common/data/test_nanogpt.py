"""Token files of nanoGPT: what it writes trains here, what is written here opens there."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from apps.nanogpt import write_meta
from common.data.config import DataConfig
from common.data.nanogpt import read_meta
from common.data.prepare import prepare
from common.errors import DataError

TEXT = "First Citizen:\nBefore we proceed any further, hear me speak.\n" * 60


def as_nanogpt(folder: Path) -> Path:
    """What its data/shakespeare_char/prepare.py makes of a text."""
    letters = sorted(set(TEXT))
    stoi = {letter: i for i, letter in enumerate(letters)}
    ids = np.array([stoi[letter] for letter in TEXT], dtype=np.uint16)
    cut = int(len(TEXT) * 0.9)
    folder.mkdir()
    ids[:cut].tofile(folder / "train.bin")
    ids[cut:].tofile(folder / "val.bin")
    itos = dict(enumerate(letters))
    meta = {"vocab_size": len(letters), "itos": itos, "stoi": stoi}
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta))
    return folder


def test_its_files_are_prepared_with_their_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.data.nanogpt._BLOCK_TOKENS", 1000)
    data = prepare(DataConfig(path=as_nanogpt(tmp_path / "shakespeare_char"), tokenizer="char"))
    cut = int(len(TEXT) * 0.9)
    decode = data.tokenizer.decode
    assert decode(data.tokens("train").tolist()) == TEXT[:cut]
    assert decode(data.tokens("val").tolist()) == TEXT[cut:]
    theirs = np.fromfile(tmp_path / "shakespeare_char" / "train.bin", "<u2")
    assert (data.tokens("train") == theirs + 1).all(), "ours has the end of text as 0"


def test_our_files_open_as_its_train_and_sample_scripts_do(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    data = prepare(DataConfig(path=tmp_path / "text.txt", tokenizer="char"))
    write_meta(data.directory, data.tokenizer)
    with (data.directory / "meta.pkl").open("rb") as file:  # as nanoGPT's sample.py
        meta = pickle.load(file)
    tokens = np.memmap(data.directory / "val.bin", dtype=np.uint16, mode="r")
    assert tokens.max() < meta["vocab_size"]
    assert "".join(meta["itos"][i] for i in tokens) == TEXT[int(len(TEXT) * 0.9) :]
    assert [meta["stoi"][c] for c in "First"] == data.tokenizer.encode("First").tolist()
    assert read_meta(data.directory / "meta.pkl") == meta


class Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("executed",))


HOSTILE = {
    "a call": pickle.dumps({"vocab_size": 5, "itos": Bomb()}),
    "a class": pickle.dumps({"vocab_size": 5, "path": Path("x")}),
    "an old protocol": b"cos\nsystem\n(S'echo executed'\ntR.",
    "cut off": pickle.dumps({"vocab_size": 5})[:-3],
    "no pickle": b"hello",
    "empty": b"",
    "a list": pickle.dumps([1]),
    "words": pickle.dumps({"vocab_size": "5"}),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_meta_is_refused_and_nothing_is_executed(
    what: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = as_nanogpt(tmp_path / "data")
    (folder / "meta.pkl").write_bytes(HOSTILE[what])
    with pytest.raises(DataError, match=r"meta\.pkl"):
        prepare(DataConfig(path=folder, tokenizer="char"))
    assert "executed" not in capfd.readouterr().out


@pytest.mark.parametrize(("content", "reason"), [(b"", "is empty"), (b"abc", "3 bytes, an odd")])
def test_a_file_that_holds_no_tokens_is_refused(
    content: bytes, reason: str, tmp_path: Path
) -> None:
    folder = as_nanogpt(tmp_path / "shakespeare_char")
    (folder / "val.bin").write_bytes(content)
    with pytest.raises(DataError, match=rf"val\.bin .*{reason}"):
        prepare(DataConfig(path=folder, tokenizer="char"))


def test_tokens_beyond_the_vocabulary_are_refused(tmp_path: Path) -> None:
    folder = as_nanogpt(tmp_path / "data")
    np.array([60_000] * 50, dtype=np.uint16).tofile(folder / "val.bin")
    with pytest.raises(DataError, match=r"val\.bin has the token 60000"):
        prepare(DataConfig(path=folder, tokenizer="char"))
