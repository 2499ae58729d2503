"""A text for configurations whose own is not here, or takes long to prepare."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.data.config import DataConfig
from common.data.prepare import prepare
from common.data.token_files import TokenDataset


@pytest.fixture
def short_text(tmp_path: Path) -> TokenDataset:
    """Of some characters, longer than the context of every configuration."""
    path = tmp_path / "short.txt"
    path.write_text("the cat sat on the mat. " * 5000)
    return prepare(DataConfig(path=path, vocab_size=260))
