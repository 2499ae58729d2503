"""Data parallelism: each process holds the whole model (DDP) or a shard of it (FSDP)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn

from common.data.batch import IGNORE_INDEX, Batch, rows_of
from common.errors import ConfigError
from common.models.base import BaseModel
from common.models.shards import is_sharded
from common.training.config import OptimizerConfig, TrainingConfig
from common.training.distributed import DistributedContext
from common.training.objective import Objective
from common.training.sharded import gathered


def check_distributed(
    training: TrainingConfig, optimizer: OptimizerConfig, context: DistributedContext
) -> None:
    """Raise ConfigError for options that `training.distributed=fsdp` does not support."""
    if strategy_of(training, context) != "fsdp":
        return
    if optimizer.name == "muon":
        raise ConfigError(
            "Muon needs whole matrices, training.distributed=fsdp shards them",
            "set optimizer.name=adamw or training.distributed=ddp",
        )
    if training.save_in_background:
        raise ConfigError(
            "training.distributed=fsdp writes its checkpoints from all processes at once, "
            "not in the background",
            "set training.save_in_background=false or training.distributed=ddp",
        )


def strategy_of(training: TrainingConfig, context: DistributedContext) -> str:
    """ "none" for a single process, else "ddp" or "fsdp"."""
    return "none" if context.world_size == 1 else training.distributed.replace("auto", "ddp")


def own_rows(batch: Batch, objective: Objective, context: DistributedContext) -> tuple[Batch, int]:
    """Return (the rows of `batch` that this process computes, their number of targets).

    Sharded models need every process in every forward pass: a process without rows computes the
    first row without labels, so that also the statistics of experts do not count it again.
    """
    rows = rows_of(batch, context.rank, context.world_size)
    if rows is None:
        first = {name: tensor[:1] for name, tensor in batch.items()}
        if "labels" in first:
            first["labels"] = torch.full_like(first["labels"], IGNORE_INDEX)
        return first, 0
    return rows, objective.count(rows)


class TrainingModule(nn.Module):
    """The module that the Trainer calls: `module(batch)` returns the loss of the objective.

    The backward pass averages gradients over processes: with DistributedDataParallel each holds the
    whole model (Li et al. 2020), with FSDP2 a shard of the weights, gradients and optimizer state
    (Zhao et al. 2023; `fully_shard`).
    """

    def __init__(
        self, model: BaseModel, objective: Objective, strategy: str, context: DistributedContext
    ) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.strategy = strategy
        self._replicas: nn.parallel.DistributedDataParallel | None = None
        if strategy == "ddp":
            # After its first backward pass DDP rebuilds its gradient buckets, and so sums those of
            # more than two processes in another order: a resumed run would differ in the last bits.
            # With find_unused_parameters it does not.
            many = context.world_size > 2
            self._replicas = nn.parallel.DistributedDataParallel(
                _Loss(model, objective, many),
                gradient_as_bucket_view=True,
                find_unused_parameters=many,
            )
        elif strategy == "fsdp":
            _shard(model, context)

    def forward(self, batch: Batch) -> torch.Tensor:
        if self._replicas is not None:
            loss: torch.Tensor = self._replicas(batch)
            return loss
        return self.objective.loss(self.model, batch)

    def without_reduction(self, skip: bool) -> AbstractContextManager[None]:
        """With `skip`, do not synchronise gradients: another backward pass of the step follows."""
        if self.strategy == "fsdp":
            self.model.set_requires_gradient_sync(not skip)  # type: ignore[operator]  # of FSDPModule
        if self._replicas is not None and skip:
            return self._replicas.no_sync()
        return nullcontext()


class _Loss(nn.Module):
    def __init__(self, model: BaseModel, objective: Objective, with_unused: bool) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        if with_unused:  # DDP warns in each process if it finds none
            self.unused = nn.Parameter(torch.zeros(1, device=model.device))

    def forward(self, batch: Batch) -> torch.Tensor:
        return self.objective.loss(self.model, batch)


def _shard(model: BaseModel, context: DistributedContext) -> None:
    """Apply FSDP2: each block gathers its own weights, the model the rest (mostly embeddings)."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(context.device.type, (context.world_size,))
    blocks = getattr(model, "blocks", None)
    for block in blocks if isinstance(blocks, nn.ModuleList) else []:
        if type(block).forward is not nn.Module.forward:  # callable, not only a container
            fully_shard(block, mesh=mesh)
    # Gathered weights are dropped after every pass, also in an evaluation, so that the next pass
    # sees changes of the shards (by the optimizer or averaged weights).
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    for name in model.entry_points:
        plain = getattr(model, name)
        register_fsdp_forward_method(model, name)
        setattr(model, name, partial(_enter, model, plain, getattr(model, name)))
    # A backward pass prefetches in this order. By default FSDP2 follows all forward passes since
    # the last one, and processes that sampled differently would deadlock.
    shards = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for shard, before in zip(shards, [shards[-1], *shards[:-1]], strict=True):
        shard.set_modules_to_backward_prefetch([before])
    with gathered(model):  # allocate whole weights outside of inference mode
        pass


def _enter(
    model: BaseModel,
    plain: Callable[..., torch.Tensor],
    gathering: Callable[..., torch.Tensor],
    *arguments: Any,
    **options: Any,
) -> torch.Tensor:
    """Wrap an entry point of a sharded model: gather the weights unless they are already gathered.

    By default FSDP2 drops them at the end of each entry point, also of a nested one.
    """
    here = not is_sharded(next(model.parameters()))
    return (plain if here else gathering)(*arguments, **options)
