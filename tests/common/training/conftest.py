"""The laboratory of the tests that attack training, opened once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.common.training.attack_lab import Attack


@pytest.fixture(scope="session")
def shared_attack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attack]:
    from tests.common.training.attack_lab import open_attack  # pandas, which few tests here need

    with open_attack(tmp_path_factory.mktemp("attack")) as attack:
        yield attack


@pytest.fixture
def attack(shared_attack: Attack, assets_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Attack:
    """After `assets_dir`, so that this process looks where the others write."""
    monkeypatch.setenv("RESEARCH_ASSETS_DIR", str(shared_attack.folder / "assets"))
    return shared_attack
