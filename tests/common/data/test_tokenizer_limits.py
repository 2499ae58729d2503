"""Whatever a small tokenizer.json says ends in right ids or in one error, in little memory and time."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from common.data.tokenizers import BPETokenizer, load_tokenizer
from common.errors import DataError
from common.utils.paths import REPOSITORY_ROOT

Json = dict[str, Any]
OURS: Json = json.loads(BPETokenizer.train(["the cat"], 300).tokenizer.to_str())
SIZE = len(OURS["model"]["vocab"])
END = OURS["added_tokens"][0]
TIKTOKEN: Json = {
    "type": "tiktoken",
    "name": "x",
    "pattern": ".",
    "special_tokens": {"<|endoftext|>": 256},
    "tokens": [base64.b64encode(bytes([byte])).decode() for byte in range(256)],
}
UNIGRAM: Json = {"type": "Unigram", "unk_id": None, "vocab": [["<|endoftext|>", 0.0], ["a", -1.0]]}


def model(**changes: Any) -> Json:
    return OURS | {"model": OURS["model"] | changes}


def vocab(index: float) -> Json:
    return model(vocab=OURS["model"]["vocab"] | {"zz": index})


def added(text: str, index: int) -> Json:
    return OURS | {"added_tokens": [END, END | {"content": text, "id": index, "special": False}]}


def split(pattern: str) -> Json:
    part = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return OURS | {"pre_tokenizer": part}


def replace(times: int) -> Json:
    part = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}
    return {"type": "Sequence", "normalizers": [part] * times}


REFUSED: dict[str, tuple[Json, str]] = {
    "an id of 2^31 - 2": (vocab(2**31 - 2), "263 tokens, and one of them has the id 2,147,483,646"),
    "an id of 2^32 - 1": (vocab(2**32 - 1), "one of them has the id 4,294,967,295"),
    "an id of 2^32": (vocab(2**32), "invalid value"),
    "a negative id": (vocab(-1), "invalid value"),
    "half an id": (vocab(1.5), "invalid type"),
    "an id twice": (vocab(5), "two tokens have the id 5"),
    "an added token behind a gap": (added("<x>", 5000), f"'<x>' has the id 5000, not {SIZE}"),
    "an added token far away": (added("<x>", 2**31), "has the id 2147483648"),
    "no added tokens": (OURS | {"added_tokens": None}, "invalid type"),
    "an open bracket": (split("("), "parenthesis"),
    "a text of gigabytes": (OURS | {"normalizer": replace(12)}, "thousands of times"),
    "brackets": (split("(" * 5000 + ")" * 5000), "not a valid tokenizer"),
    "a damaged table": (
        OURS | {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
        "PanicException",
    ),
    "a prefix that is longer than merges": (
        model(continuing_subword_prefix="ab"),
        "PanicException",
    ),
    "an unknown token out of range": (
        OURS | {"model": UNIGRAM | {"unk_id": 77}},
        "UnkIdNotInVocabulary",
    ),
    "a tiktoken id of 2^31": (
        TIKTOKEN | {"special_tokens": {"<|endoftext|>": 2**31}},
        "2,147,483,648",
    ),
    "a negative tiktoken id": (TIKTOKEN | {"special_tokens": {"<|endoftext|>": -5}}, "the id -5"),
    "a tiktoken id twice": (TIKTOKEN | {"special_tokens": {"<|endoftext|>": 5}}, "the id 5"),
    "a tiktoken rank of 2^31": (TIKTOKEN | {"ranks": [2**31, *range(1, 256)]}, "2,147,483,648"),
}


def load(content: Json, folder: Path) -> Any:
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return load_tokenizer(folder / "tokenizer.json")


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_right_is_refused_when_it_is_read(what: str, tmp_path: Path) -> None:
    content, message = REFUSED[what]
    with pytest.raises(DataError, match=r"tokenizer\.json") as error:
        load(content, tmp_path)
    assert message in error.value.message


UNENCODABLE = {
    "a regular expression that doubles its time with each letter": split("(a+)+$"),
    "another one": OURS
    | {"normalizer": {"type": "Replace", "pattern": {"Regex": "(a|a)*$"}, "content": "x"}},
    "pieces of no length": OURS | {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    "no unknown token": OURS | {"model": UNIGRAM},
}


@pytest.mark.parametrize("what", UNENCODABLE)
def test_what_cannot_be_encoded_is_an_error_of_one_line(what: str, tmp_path: Path) -> None:
    tokenizer = load(UNENCODABLE[what], tmp_path)
    with pytest.raises(DataError, match="encoding failed") as error:
        tokenizer.encode("a" * 40 + "b")
    assert "\n" not in error.value.message and error.value.hint


def test_a_gap_in_the_ids_is_a_row_that_nothing_uses(tmp_path: Path) -> None:
    tokenizer = load(vocab(SIZE + 100), tmp_path)
    assert tokenizer.vocab_size == SIZE + 101 == len(tokenizer.token_bytes)
    assert tokenizer.token_bytes[SIZE : SIZE + 100].sum() == 0
    assert tokenizer.decode(tokenizer.encode("the cat").tolist()) == "the cat"


def test_a_wild_id_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(vocab(2**31 - 2)))
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32))\n"
        "from common.data.tokenizers import load_tokenizer\nload_tokenizer(sys.argv[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        cwd=REPOSITORY_ROOT,
        capture_output=True,
        text=True,
    )
    assert "DataError" in done.stderr and "2,147,483,646" in done.stderr
