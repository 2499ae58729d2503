"""The forms that tokenizer.json has on the hub: ids of `tokenizers` and of transformers, bytes, losses."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from common.data.tokenizers import find_tokenizer
from tests.common.data.hub_forms import FORMS
from tests.common.data.random_pipelines import random_text
from tests.common.data.test_tokenizer_pipelines import check_pipeline

TEXTS = [
    "a <think>b</think>",
    "    four spaces, \n\n two lines\n\n\nand <|0.00|> <|user|>  <table>",
    "[INST] the quick </s> <|endoftext|> 1234567 don't!",
    "naïve café, 日本語 🙂 Straße",
]
TEXT = "The quick brown fox's café jumped over 1234 lazy dogs; 日本語, don't!"
FAST = {"gpt2", "roberta"}
# The others normalise text, drop spaces, or write them as a character that a text can hold too.
LOSSLESS = {
    *("gpt2", "roberta", "whisper", "llama3", "mistral_tekken", "gpt_oss"),
    *("deepseek", "bloom", "falcon", "starcoder"),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_form_of_the_hub_gives_its_ids_and_bytes(name: str, tmp_path: Path) -> None:
    build, beside = FORMS[name]
    draw = Random(3)
    path = check_pipeline(
        build(), [*TEXTS, TEXT, *(random_text(draw) for _ in range(40))], tmp_path
    )
    assert ("fast" in path) == (name in FAST), path
    tokenizer = find_tokenizer(str(tmp_path))
    assert (not tokenizer.loses) == (name in LOSSLESS), tokenizer.loses
    if beside is not None:
        counted = int(tokenizer.token_bytes[tokenizer.encode(TEXT)].sum())
        assert counted - len(TEXT.encode()) == beside
        assert tokenizer.decode(tokenizer.encode(TEXT).tolist()) == TEXT


@pytest.mark.parametrize("name", FORMS)
def test_transformers_reads_the_same_ids_from_the_export(name: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    check_pipeline(FORMS[name][0](), TEXTS, tmp_path)
    ours = find_tokenizer(str(tmp_path))
    theirs = AutoTokenizer.from_pretrained(tmp_path / "hub")
    for text in [*TEXTS, TEXT]:
        assert theirs(text, add_special_tokens=False)["input_ids"] == ours.encode(text).tolist()
