"""The laboratory of the tests that attack training, opened once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.fork_server import ForkServer

if TYPE_CHECKING:
    from tests.common.training.attack_lab import Attack


@pytest.fixture(scope="session")
def shared_attack(tmp_path_factory: pytest.TempPathFactory, fork_server: ForkServer) -> Attack:
    from tests.common.training import attack_lab, test_resume  # pandas, which few tests here need

    folder = tmp_path_factory.mktemp("attack")
    return test_resume.open_lab(
        attack_lab.Attack, folder, fork_server, attack_lab.CONFIG, num_words=1500
    )


@pytest.fixture
def attack(shared_attack: Attack, assets_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Attack:
    """After `assets_dir`, so that this process looks where the others write."""
    monkeypatch.setenv("RESEARCH_ASSETS_DIR", str(shared_attack.folder / "assets"))
    return shared_attack
