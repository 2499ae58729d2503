"""Sharded models: access the local shard, or gather all weights temporarily."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from common.errors import TrainingError
from common.models.shards import is_sharded


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The local shard of a sharded tensor, sharing its memory; any other tensor unchanged."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]  # DTensor


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Gather all weights in each process inside the block, so that a process can compute alone.

    All processes of a sharded model enter and leave it together. The weights are read-only copies:
    raises TrainingError if one was changed, which would be lost. Does nothing for other models.
    """
    if not any(map(is_sharded, model.parameters())):
        yield
        return
    shards: list[Any] = [module for module in model.modules() if hasattr(module, "unshard")]
    for shard in shards:  # the model first, as the root of FSDP2
        shard.unshard()
    shards[0].set_reshard_after_forward(False)
    versions = [parameter._version for parameter in model.parameters()]
    try:
        yield
        if versions != [parameter._version for parameter in model.parameters()]:
            raise TrainingError(
                "weights were changed while each process had a copy of them",
                "change them in on_step, where a callback sees the shards that are trained",
            )
    finally:
        shards[0].set_reshard_after_forward(True)
        for shard in shards:
            shard.reshard()
