"""A checkpoint is read by any way of running, whichever way wrote it.

This file is also what the processes run: `torchrun test_distributed_checkpoints.py FOLDER`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from common.errors import TrainingError, exit_on_error
from common.models import BaseLanguageModel, Decoder, checkpoint
from common.models.shards import is_sharded
from common.training import Callback, Trainer
from common.training.checkpoints import latest_checkpoint
from common.training.distributed import DistributedContext, join_context
from common.training.optimizer_state import sharded_parameters
from common.training.sharded import gathered
from common.utils import start_experiment
from common.utils.paths import get_runs_dir
from projects.custom_transformer.model import CustomTransformer
from tests.budget import budget
from tests.common.training.test_distributed import StopAt, create_trainer
from tests.fork_server import ForkServer
from tests.torchrun import fork_processes

Tensors = dict[str, torch.Tensor]
CASES: dict[str, dict[str, Any]] = {
    "plain": {"size": 4},
    "averaged": {"size": 4, "ema": 0.9, "accumulation": 2, "callbacks": True},
    "custom": {"size": 4, "model": "custom", "callbacks": True},
}
TRIED = budget(["averaged", "custom"], list(CASES))
WAYS = ("auto", "ddp", "fsdp")


class MeanGradient(Callback):
    """A mean for each parameter, split as it is, and a tensor that is whole."""

    def __init__(self) -> None:
        self.means: Tensors = {}
        self.seen = torch.zeros(3, dtype=torch.int64)

    def on_gradients(self, trainer: Trainer) -> None:
        self.seen += 1
        for name, parameter in trainer.model.named_parameters():
            assert parameter.grad is not None
            mean = self.means.setdefault(name, parameter.grad.clone())
            mean.lerp_(parameter.grad, 0.5)

    def tensors(self) -> Tensors:
        return {"seen": self.seen} | {f"mean.{name}": mean for name, mean in self.means.items()}

    def load_tensors(self, tensors: Tensors) -> None:
        self.seen = tensors.pop("seen")
        self.means = {name.removeprefix("mean."): mean for name, mean in tensors.items()}


class LastStep(Callback):
    """Of the main process alone."""

    def __init__(self) -> None:
        self.step = torch.zeros(2, 2)

    def on_step(self, trainer: Trainer) -> None:
        self.step = torch.full((2, 2), float(trainer.step))

    def tensors(self) -> Tensors:
        return {"step": self.step}

    def load_tensors(self, tensors: Tensors) -> None:
        self.step = tensors["step"]


def trainer_of(
    name: str, way: str, context: DistributedContext, run: Any = None, stop_at: int = 12
) -> Trainer:
    case = CASES[name]
    callbacks: list[Callback] = [StopAt(stop_at)]
    if case.get("callbacks"):
        callbacks += [*([LastStep()] if context.is_main else []), MeanGradient()]
    return create_trainer(case, way, context, callbacks, run)


def everything(trainer: Trainer) -> Tensors:
    """Whatever a checkpoint has, whole, but for the random states; all processes call it."""
    _, weights, tensors = trainer.state.state()
    return {
        name: (tensor.full_tensor() if is_sharded(tensor) else tensor).clone()  # type: ignore[attr-defined]  # DTensor
        for name, tensor in (weights | tensors).items()
        if not name.startswith("rng.")
    }


def write(name: str, way: str, context: DistributedContext, folder: Path) -> None:
    run_name, run = f"{name}_{way}", None
    if context.is_main:
        run = start_experiment(run_name, system_metrics_seconds=None)
    trainer = trainer_of(name, way, context, run, stop_at=3)
    trainer.fit()
    found = everything(trainer)
    if run is not None:
        run.finish("finished")
        save_file(found, folder / f"{run_name}.safetensors")


def read(name: str, written: str, way: str, context: DistributedContext, folder: Path) -> None:
    """All is there again, and training goes on from it."""
    trainer = trainer_of(name, way, context)
    trainer.set_up()
    directory = get_runs_dir() / f"{name}_{written}" / "checkpoints"
    parts = sharded_parameters(trainer.model, trainer.optimizer)
    saved = latest_checkpoint(directory, "cpu", context, parts)
    assert saved is not None
    trainer.state.load_state(saved)
    found, expected = everything(trainer), load_file(folder / f"{name}_{written}.safetensors")
    if not context.is_main:
        expected = {k: t for k, t in expected.items() if not k.startswith("callback.LastStep")}
    assert found.keys() == expected.keys(), (name, written, way)
    for key, tensor in found.items():
        assert torch.equal(tensor, expected[key]), (name, written, way, key)
    trainer.fit()
    assert trainer.step == 12


def main(folder: Path) -> None:
    with exit_on_error(), join_context("cpu") as context:
        for name in TRIED:
            for way in ("ddp", "fsdp"):
                write(name, way, context, folder)
        context.any(False)  # the main process has written its files
        for name in TRIED:
            for written in WAYS:
                for way in ("ddp", "fsdp"):
                    read(name, written, way, context, folder)
        change_a_copy(context)


def change_a_copy(context: DistributedContext) -> None:
    """What would be lost is refused, and a gathered model is saved as the class that it was."""
    trainer = trainer_of("plain", "fsdp", context)
    trainer.set_up()
    model = trainer.model
    assert any(map(is_sharded, model.parameters()))
    changed = pytest.raises(TrainingError, match="weights were changed")
    with changed, gathered(model), torch.no_grad():
        next(model.parameters()).add_(1.0)
    assert all(map(is_sharded, model.parameters()))
    with gathered(model), gathered(model):
        assert checkpoint.identity_of(model)["class"].endswith("decoder.Decoder")
        assert not any(map(is_sharded, model.parameters()))
    assert all(map(is_sharded, model.parameters()))


@pytest.mark.attack
@pytest.mark.slow
def test_every_way_of_running_reads_what_every_other_wrote(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    for name in TRIED:
        write(name, "auto", DistributedContext(), tmp_path)
    code, output = fork_processes(fork_server, 2, Path(__file__), tmp_path)
    assert code == 0, output
    for name in TRIED:
        kind: type[BaseLanguageModel] = CustomTransformer if name == "custom" else Decoder
        for written in WAYS:
            read(name, written, "auto", DistributedContext(), tmp_path)
            folder = get_runs_dir() / f"{name}_{written}" / "checkpoints" / "step_3"
            assert (folder / "model.safetensors").exists() == (written != "fsdp")
            weights = checkpoint.weights_of(kind.load_checkpoint(folder))
            expected = load_file(tmp_path / f"{name}_{written}.safetensors")
            assert all(torch.equal(tensor, expected[key]) for key, tensor in weights.items())
    name_as_before(get_runs_dir() / "custom_fsdp" / "checkpoints" / "step_3")
    read("custom", "fsdp", "auto", DistributedContext(), tmp_path)


def name_as_before(folder: Path) -> None:
    """As earlier versions wrote parts: names of all kinds side by side."""
    for shard in folder.glob("shard-*.safetensors"):
        content = shard.read_bytes()
        size = int.from_bytes(content[:8], "little")
        header = content[8 : 8 + size]
        for word in (b"optimizer.", b"trained.", b"rng.", b"callback."):
            header = header.replace(b"training." + word, word)
        assert len(header) < size
        shard.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + size :])
    (folder / "SHA256SUMS").write_text(checkpoint._checksums(folder))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
