"""Pieces, threads, kills: the token files are those of encoding everything at once."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.data import encoding
from common.data.config import DataConfig
from common.data.documents import Corpus, Document
from common.data.encoding import Totals, encode_documents
from common.data.prepare import prepare
from common.data.splits import split_documents
from common.data.token_files import open_tokens
from common.data.tokenizers import BPETokenizer, CharTokenizer, Tokenizer
from common.errors import DataError
from tests.budget import budget, examples, repeat
from tests.fork_server import ForkServer

WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "the",
    "mat.",
    "it's",
    "12",
    "o'clock,\n\n",
    "",
    "and",
    "all",
    "is",
    "well!\r\n",
]
BPE = BPETokenizer.train([" ".join(WORDS)] * 5, 300)
words = st.lists(st.sampled_from([*WORDS, " ", "\n", "é日"]), max_size=30).map(" ".join)
# A document is a list of parts.
documents = st.lists(st.lists(words, min_size=1, max_size=4), min_size=1, max_size=6)


def stream(parts: list[list[str]]) -> Iterator[Document]:
    for number, texts in enumerate(parts):
        for place, text in enumerate(texts):
            yield Document(str(number), text, split_of(number), ends=place == len(texts) - 1)


def split_of(number: int) -> str:
    return "val" if number % 3 == 2 else "train"


def expected(parts: list[list[str]], tokenizer: Tokenizer) -> dict[str, list[int]]:
    """Each document encoded whole, with the end of text between two."""
    found: dict[str, list[int]] = {"train": [], "val": []}
    seen: set[str] = set()
    for number, texts in enumerate(parts):
        split = split_of(number)
        found[split] += [tokenizer.end_of_text] if split in seen else []
        found[split] += tokenizer.encode("".join(texts)).tolist()
        seen.add(split)
    return found


def written(folder: Path) -> dict[str, list[int]]:
    return {s: np.fromfile(folder / f"{s}.bin", "<u2").tolist() for s in ("train", "val")}


class Borderless(CharTokenizer):
    def last_border(self, text: str) -> int:
        return 0


LETTERS = [*{*"".join(WORDS), " ", "\n", "é", "日"}]
TOKENIZERS = {"bpe": BPE, "char": CharTokenizer(LETTERS), "uncut": Borderless(LETTERS)}


@pytest.mark.parametrize("name", TOKENIZERS)
@given(parts=documents, size=st.integers(1, 60), threads=st.integers(1, 3))
@examples(80)
def test_the_files_are_those_of_whole_documents(
    name: str,
    parts: list[list[str]],
    size: int,
    threads: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("tokens")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "_BATCH_CHARACTERS", size)
        totals = encode_documents(stream(parts), TOKENIZERS[name], folder, threads)
    assert written(folder) == expected(parts, TOKENIZERS[name])
    assert sum(total.num_documents for total in totals.values()) == len(parts)
    assert sum(total.num_bytes for total in totals.values()) == len("".join(chain(*parts)).encode())
    assert {s: t.num_tokens for s, t in totals.items()} == {
        s: len(i) for s, i in written(folder).items()
    }


@pytest.mark.parametrize("name", TOKENIZERS)
@given(parts=documents, val_fraction=st.floats(0.01, 0.99), size=st.integers(1, 60))
@examples(80)
def test_a_split_by_fraction_is_at_its_character(
    name: str,
    parts: list[list[str]],
    val_fraction: float,
    size: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder, tokenizer = tmp_path_factory.mktemp("tokens"), TOKENIZERS[name]
    corpus = Corpus("parts", {}, lambda: stream(parts))
    split = split_documents(
        corpus, stream(parts), split_by="fraction", val_fraction=val_fraction, seed=0
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "_BATCH_CHARACTERS", size)
        encode_documents(split, tokenizer, folder, 2)
    text = "".join(chain(*parts))
    cut = int(len(text) * (1 - val_fraction))
    assert [tokenizer.decode(ids) for ids in written(folder).values()] == [text[:cut], text[cut:]]


def test_a_text_that_cannot_be_cut_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(encoding, "_LONGEST_UNCUT", 50)
    parts = [["a" * 40, "a" * 40, "a" * 40]]
    with pytest.raises(DataError, match="0 has 80 characters without a cut point"):
        encode_documents(stream(parts), BPE, tmp_path, 1)


def test_an_error_while_encoding_ends_it(tmp_path: Path) -> None:
    parts = [["ok"], ["not known: Ж"], ["ok"]] * 50
    with pytest.raises(DataError, match="'Ж'"):
        encode_documents(stream(parts), CharTokenizer("ok not knw:"), tmp_path, 2)


def test_nothing_gives_empty_files(tmp_path: Path) -> None:
    assert encode_documents(iter([]), BPE, tmp_path, 2)["train"] == Totals()
    assert written(tmp_path) == {"train": [], "val": []}


_PREPARE = """
import sys, time
from common.data import encoding, text_files
from common.data.config import DataConfig
from common.data.prepare import prepare
encoding._SAVE_EVERY_SECONDS = 0.02
encoding._BATCH_CHARACTERS = 20_000
text_files._BLOCK_BYTES = 200_000
write = encoding._Writer.write
encoding._Writer.write = lambda *arguments: (time.sleep(0.05), write(*arguments))  # seconds in all
prepare(DataConfig(path=sys.argv[1], tokenizer=sys.argv[2], vocab_size=400))
"""


@pytest.mark.slow
@repeat("kind", ["bpe", "char", "one file"])
def test_killed_at_any_moment_it_ends_with_the_same_bytes(
    kind: str, tmp_path: Path, fork_server: ForkServer
) -> None:
    draw = random.Random(7)
    source = tmp_path / "texts"
    source.mkdir()
    for number in range(1 if kind == "one file" else budget(25, 60)):
        length = 2_000_000 if kind == "one file" else 30_000
        (source / f"{number}.txt").write_text(" ".join(draw.choices(WORDS, k=length)))
    path = source / "0.txt" if kind == "one file" else source
    tokenizer = "char" if kind == "char" else "bpe"
    config = DataConfig(path=path, tokenizer=tokenizer, vocab_size=400)
    reference = prepare(config)  # in this process, in another assets folder
    assets = tmp_path / "killed"
    environment = os.environ | {"RESEARCH_ASSETS_DIR": str(assets)}
    kills = went_on = 0
    while True:
        with (tmp_path / "errors").open("w+") as log, Path(os.devnull).open() as nothing:
            streams = {"stdin": nothing, "stdout": log, "stderr": log}
            command = ("-c", _PREPARE, path, tokenizer)
            process = fork_server.start(*command, env=environment, **streams)
            try:
                process.wait(0.2 + draw.random() * 0.8 + 0.3 * kills)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                kills += 1
        errors = (tmp_path / "errors").read_text()
        went_on += "resuming the preparation" in errors
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, errors
        assert kills < 60
    assert kills and went_on
    done = open_tokens(next((assets / "datasets").glob("*/tokens/[!.]*")))
    assert done.meta["splits"] == reference.meta["splits"]
    assert done.meta["tokenizer_sha256"] == reference.meta["tokenizer_sha256"]
    assert not [*(assets / "datasets").glob("*/tokens/.*building")]


def test_an_interrupted_preparation_of_another_text_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "text.txt"
    path.write_text("one two three " * 5000)
    config = DataConfig(path=path, tokenizer="bpe", vocab_size=300)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["common.data.prepare"], "_check_unchanged", interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare(config)
    time.sleep(0.01)
    path.write_text("four five six " * 5000)
    data = prepare(config)
    assert data.tokenizer.decode(data.tokens("train")[:20].tolist()).startswith("four five")
