"""Tokenizers of somebody else's: whatever a tokenizer.json says, our ids are those of `tokenizers`."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest
import tokenizers as hf

from apps.export.hub_tokenizer import save_hub_tokenizer
from common.data.tokenizers import PretrainedTokenizer, load_tokenizer
from tests.budget import budget
from tests.common.data.random_pipelines import random_pipeline, random_text


def reference_of(content: dict[str, Any]) -> hf.Tokenizer:
    """tokenizers itself, of the whole text, without chance, specials neither added nor read."""
    model = content["model"] | ({"dropout": None} if content["model"]["type"] == "BPE" else {})
    plain = {"truncation": None, "padding": None, "post_processor": None, "model": model}
    tokenizer = hf.Tokenizer.from_str(json.dumps(content | plain))
    tokenizer.encode_special_tokens = True
    return tokenizer


def ids_of(tokenizer: hf.Tokenizer, texts: list[str]) -> list[list[int]]:
    found = tokenizer.encode_batch(texts, add_special_tokens=False)
    return [encoding.ids for encoding in found]


def check_pipeline(content: dict[str, Any], texts: list[str], folder: Path) -> str:
    """Everything that is promised of a tokenizer; returns which of our paths it took."""
    (folder / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    assert isinstance(tokenizer, PretrainedTokenizer)
    expected = ids_of(reference_of(content), texts)
    assert [ids.tolist() for ids in tokenizer.encode_batch(texts)] == expected
    tokenizer.save(folder / "saved.json")
    saved = load_tokenizer(folder / "saved.json")
    assert [ids.tolist() for ids in saved.encode_batch(texts)] == expected
    save_hub_tokenizer(tokenizer, folder / "hub", None)
    exported = hf.Tokenizer.from_file(str(folder / "hub" / "tokenizer.json"))
    exported.encode_special_tokens = True
    assert ids_of(exported, texts) == expected
    sizes, lossless = tokenizer.token_bytes, not tokenizer.loses
    assert sizes.shape == (tokenizer.vocab_size,) and sizes.min() >= 0
    for text, ids in zip(texts, expected, strict=True):
        border = tokenizer.last_border(text)
        parts = tokenizer.encode_batch([text[:border], text[border:]])
        assert [i for part in parts for i in part.tolist()] == ids, (text, border)
        if lossless:
            assert int(sizes[ids].sum()) == len(text.encode()), text
            assert tokenizer.decode(ids) == text
            assert tokenizer.end_of_text not in ids
    fast = "fast" if tokenizer._fast is not None else "slow"
    return f"{tokenizer.kind}, {fast}, {'lossless' if lossless else 'lossy'}"


def attack(seed: int, pipelines: int, texts: int, folder: Path) -> Counter[str]:
    draw = Random(seed)
    paths: Counter[str] = Counter()
    for number in range(pipelines):
        content = random_pipeline(draw)
        try:
            paths[check_pipeline(content, [random_text(draw) for _ in range(texts)], folder)] += 1
        except BaseException:
            described = {k: v for k, v in content.items() if k != "model"}
            model = {k: v for k, v in content["model"].items() if k not in ("vocab", "merges")}
            print(f"seed {seed}, pipeline {number}:", json.dumps(described | {"model": model}))
            raise
    return paths


@pytest.mark.slow
@pytest.mark.attack
def test_ids_bytes_and_borders_of_random_pipelines(tmp_path: Path) -> None:
    paths = attack(1, budget(80, 500), budget(12, 200), tmp_path)
    assert {
        "pretrained, fast, lossless",
        "pretrained, slow, lossless",
        "pretrained, slow, lossy",
    } <= {*paths}
