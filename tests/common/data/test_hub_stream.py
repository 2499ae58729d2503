"""Rows of the hub that become tokens as they come: nothing of the dataset stays on the disk."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.data.config import DataConfig
from common.data.prepare import prepare
from common.errors import DataError, DownloadError
from tests.hub_double import HubDouble

ROWS = [f"row {i} of the hub, {i * i}" for i in range(200)]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubDouble]:
    with HubDouble() as hub:
        lines = "".join(json.dumps({"text": row}) + "\n" for row in ROWS).encode()
        hub.add("dataset", "me/rows", {"train.jsonl": lines})
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        yield hub


def test_a_streamed_dataset_is_that_of_its_commit(hub: HubDouble, assets_dir: Path) -> None:
    config = DataConfig(hub="me/rows", streaming=True, tokenizer="char")
    data = prepare(config)
    texts = []
    for split in ("train", "val"):
        text = "".join(
            "\n" if i == 0 else data.tokenizer.decode([i]) for i in data.tokens(split).tolist()
        )
        texts += text.split("\n")
    assert sorted(texts) == sorted(ROWS)
    assert (
        data.meta["recipe"]["source"]["commit"]
        == hub.repositories["dataset", "me/rows"].refs["main"]
    )
    assert [path.name for path in (assets_dir / "datasets" / "rows").iterdir()] == ["tokens"]
    hub.add("dataset", "me/rows", {"train.jsonl": json.dumps({"text": "new " * 50}).encode() * 1})
    assert prepare(config).meta["recipe"] != data.meta["recipe"]


def test_what_is_not_there_is_told(hub: HubDouble) -> None:
    with pytest.raises(DownloadError, match="no dataset 'me/none'"):
        prepare(DataConfig(hub="me/none", streaming=True, tokenizer="char"))
    with pytest.raises(DataError, match="no column 'body'"):
        prepare(DataConfig(hub="me/rows", streaming=True, tokenizer="char", text_column="body"))
