"""Several processes that train one model: `torchrun --nproc-per-node 2 projects/x/train.py ...`.

The batch of a step is the same whatever the number of processes, each takes its rows of it. So a
configuration means the same training on 1, 2 or 4 processes, and can be resumed on another number.
Rank 0 alone writes: the log, the samples, the checkpoints that are not sharded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn

from common.data.loader import Batch
from common.errors import ConfigError
from common.models.base import BaseLanguageModel
from common.models.loss import IGNORE_INDEX
from common.training.precision import select_device

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process among those that train together; alone, every method does nothing."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def rows(self, batch: Batch) -> Batch:
        """The rows of a batch that this process computes; at least one, if only of padding."""
        if self.world_size == 1:
            return batch
        size = len(batch["input_ids"])
        share = -(-size // self.world_size)
        mine = slice(self.rank * share, (self.rank + 1) * share)
        if self.rank * share < size:
            return {name: tensor[mine] for name, tensor in batch.items()}
        # Sharded models need every process in every forward pass.
        padding = {name: tensor[:1] for name, tensor in batch.items()}
        return padding | {"labels": torch.full_like(padding["labels"], IGNORE_INDEX)}

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, in place."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in one of the processes; over the CPU, no device is waited for."""
        if self.world_size == 1:
            return flag
        flags = torch.tensor(int(flag))
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        return bool(flags)

    def from_main(self, value: T) -> T:
        """What the main process passes, in all of them (anything that can be pickled)."""
        if self.world_size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in the order of their ranks."""
        if self.world_size == 1:
            return [value]
        values: list[T] = [value] * self.world_size
        dist.all_gather_object(values, value)
        return values

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The main process goes through the block first (and writes files that the others find)."""
        if not self.is_main:
            dist.barrier()
        yield
        if self.is_main and self.world_size > 1:
            dist.barrier()


@contextmanager
def join_processes(device_name: str) -> Iterator[Processes]:
    """Join the processes that torchrun has started, or be the only one; `training.device` names the kind.

    Raises TrainingError for a device that is not there.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield Processes(device=select_device(device_name))
        return
    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    device = select_device(device_name)
    if device.type == "cuda":
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(rank, world_size, device)
    finally:
        dist.destroy_process_group()


class TrainingModule(nn.Module):
    """A model as the Trainer calls it: `module(input_ids, labels)` is the loss.

    With several processes their gradients are averaged in the backward pass: by DistributedData-
    Parallel, which keeps the whole model in each (Li et al. 2020), or by FSDP2, which keeps a part
    of the weights, gradients and optimizer state in each (Zhao et al. 2023; `fully_shard`).
    """

    def __init__(self, model: BaseLanguageModel, strategy: str, processes: Processes) -> None:
        super().__init__()
        self.model = model
        self.strategy = "none" if processes.world_size == 1 else strategy.replace("auto", "ddp")
        self._replicas: nn.parallel.DistributedDataParallel | None = None
        if self.strategy == "ddp":
            self._replicas = nn.parallel.DistributedDataParallel(
                _Loss(model), gradient_as_bucket_view=True
            )
        elif self.strategy == "fsdp":
            _shard(model, processes)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = (self._replicas or self.model.compute_loss)(input_ids, labels)
        return loss

    def without_reduction(self, skip: bool) -> AbstractContextManager[None]:
        """Where `skip`, gradients stay in their process: another backward pass of the step follows."""
        if self.strategy == "fsdp":
            self.model.set_requires_gradient_sync(not skip)  # type: ignore[operator]  # of FSDPModule
        if self._replicas is not None and skip:
            return self._replicas.no_sync()
        return nullcontext()


class _Loss(nn.Module):
    def __init__(self, model: BaseLanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.model.compute_loss(input_ids, labels)


def _shard(model: BaseLanguageModel, processes: Processes) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, nn.ModuleList):
        raise ConfigError(
            f"{type(model).__name__} has no `blocks` to shard", "set training.distributed=ddp"
        )
    mesh = init_device_mesh(processes.device.type, (processes.world_size,))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    register_fsdp_forward_method(model, "compute_loss")
