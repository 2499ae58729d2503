"""The checkpoints of a training: which is found, which is kept, and what an edited one is taken for."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from common.data.batch import Batch
from common.errors import CheckpointError
from common.models import Decoder, checkpoint
from common.training import TrainingConfig
from common.training.checkpoints import (
    best_checkpoint,
    delete_old_checkpoints,
    latest_checkpoint,
    mark_best,
    steps_in,
)
from common.training.optimizer_state import pack_optimizer, unpack_optimizer
from common.utils import start_experiment
from common.utils.files import sha256_of
from tests.common.models.test_checkpoint import decoder, save
from tests.trainers import make_trainer


@pytest.fixture
def warnings(capsys: pytest.CaptureFixture[str]) -> Iterator[pytest.CaptureFixture[str]]:
    logging.getLogger("research").setLevel(logging.INFO)
    yield capsys


def test_the_newest_whole_checkpoint_is_found_and_damaged_ones_are_named(
    tmp_path: Path, warnings: pytest.CaptureFixture[str]
) -> None:
    for step in (5, 10, 20):
        save(tmp_path, step)
    (tmp_path / "step_20" / "state.json").write_text("{")
    (tmp_path / "step_30").mkdir()
    (tmp_path / ".step_40.123.tmp").mkdir()
    found = latest_checkpoint(tmp_path)
    assert found is not None and found.state["step"] == 10
    text = warnings.readouterr().err
    assert text.count("warning: ") == 2
    assert "step_30" in text and "step_20" in text and "state.json" in text


def test_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    for step in (100, 9, 20):
        save(tmp_path, step)
    assert steps_in(tmp_path) == [9, 20, 100]
    assert latest_checkpoint(tmp_path).path.name == "step_100"
    assert best_checkpoint(tmp_path).name == "step_100"
    assert steps_in(tmp_path / "nothing") == []
    assert latest_checkpoint(tmp_path / "nothing") is None


def test_old_checkpoints_go_but_the_best_stays(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4, 5):
        save(tmp_path, step)
    mark_best(tmp_path, 2, 0.5)
    delete_old_checkpoints(tmp_path, step=5, keep=2)
    assert steps_in(tmp_path) == [2, 4, 5]
    assert best_checkpoint(tmp_path).name == "step_2"


class Same:
    def batch(self, index: int) -> Batch:
        ids = torch.randint(0, 7, (2, 4), generator=torch.Generator().manual_seed(index))
        return {"input_ids": ids, "labels": ids}


@pytest.mark.slow
def test_after_a_damaged_checkpoint_the_new_ones_are_kept(tmp_path: Path) -> None:
    """A damaged later step must not count among the latest that are kept."""
    config = TrainingConfig(
        max_steps=4, checkpoint_every_steps=2, keep_checkpoints=1, device="cpu", log_every_steps=1
    )
    run = start_experiment("kept")
    trainer = make_trainer(decoder(), Same(), config, run=run)
    trainer.fit()
    directory = run.directory / "checkpoints"
    (directory / "step_4").rename(directory / "step_1000")
    (directory / "step_1000" / "state.json").write_text("{}")
    again = make_trainer(decoder(), Same(), config, run=run)
    again.resume()
    again.fit()
    assert latest_checkpoint(directory) is not None
    run.finish()


def test_the_optimizer_comes_back_exactly() -> None:
    from common.training.config import OptimizerConfig
    from common.training.optimizers import create_optimizer

    def step(model: Decoder, optimizer: torch.optim.Optimizer, index: int) -> None:
        model.compute_loss(*Same().batch(index).values()).backward()
        optimizer.step()
        optimizer.zero_grad()

    first = decoder()
    optimizer = create_optimizer(first, OptimizerConfig())
    for index in range(3):
        step(first, optimizer, index)
    groups, tensors = pack_optimizer(optimizer)
    groups = json.loads(json.dumps(groups))
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    second = decoder(seed=9)
    second.load_state_dict(first.state_dict())
    other = create_optimizer(second, OptimizerConfig())
    unpack_optimizer(other, groups, tensors)
    for index in range(3, 6):
        step(first, optimizer, index)
        step(second, other, index)
    for mine, its in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(mine, its)


# A state.json that was edited by hand, its checksum too

EDITS: dict[str, Any] = {
    **{"model": None, "model.class": 3, "model.vocab_size": "7", "model.arguments": []},
    **{"step": "4", "tokens": -1, "log_rows": 10**30, "fingerprint": [], "training": "fp32"},
    "model.quantization": 4,
}
# These are read when the training takes them up.
EDITS_OF_PARTS: dict[str, Any] = {
    **{"param_groups": 3, "rng": None, "rng.0": 3, "window": [], "window.nats": "many"},
    **{"training.precision": ..., "best_loss": ...},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The newest checkpoint of a short training."""
    config = TrainingConfig(max_steps=2, checkpoint_every_steps=2, device="cpu")
    directory = tmp_path_factory.mktemp("trained")
    trainer = make_trainer(decoder(), Same(), config)
    trainer.checkpoints = directory
    trainer.fit()
    return directory / "step_2"


def edit(path: Path, key: str, value: Any) -> None:
    """Change `key` of the state, dots between levels; `...` removes it. The checksum fits afterwards."""
    state: Any = json.loads((path / "state.json").read_text())
    *parents, last = key.split(".")
    inner = state
    for parent in parents:
        inner = inner[int(parent) if isinstance(inner, list) else parent]
    place: Any = int(last) if isinstance(inner, list) else last
    if value is ...:
        del inner[place]
    else:
        inner[place] = value
    (path / "state.json").write_text(json.dumps(state))
    files = sorted(file for file in path.iterdir() if file.name != "SHA256SUMS")
    (path / "SHA256SUMS").write_text("".join(f"{sha256_of(f)}  {f.name}\n" for f in files))


@pytest.mark.parametrize("key", EDITS)
def test_an_edited_state_is_that_of_a_damaged_checkpoint(
    key: str, trained: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copytree(trained, tmp_path / "step_2"))
    edit(path, key, EDITS[key])
    with pytest.raises(CheckpointError, match=r"state\.json does not describe"):
        checkpoint.load_checkpoint(path)


@pytest.mark.parametrize("key", EDITS_OF_PARTS)
def test_an_edited_state_is_refused_in_one_line(key: str, trained: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(trained, tmp_path / "step_2"))
    edit(path, key, EDITS_OF_PARTS[key])
    trainer = make_trainer(decoder(), Same(), TrainingConfig(max_steps=2, device="cpu"))
    trainer.checkpoints = tmp_path
    with pytest.raises(CheckpointError, match=r"state\.json does not describe") as caught:
        trainer.resume()
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("size", [0, -7, 2**40, 10**400])
def test_a_vocabulary_that_cannot_be_is_refused(size: int, trained: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(trained, tmp_path / "step_2"))
    edit(path, "model.vocab_size", size)
    with pytest.raises(CheckpointError):
        Decoder.load_checkpoint(path)
