"""Computing with sharded models: the shard that this process holds, and all weights for a moment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from common.errors import TrainingError
from common.models.shards import is_sharded


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The shard that this process holds, sharing its memory; an ordinary tensor itself."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]  # DTensor


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Each process has all weights inside of the block, so that it can compute what others do not.

    All processes of a sharded model enter and leave it together. The weights are copies to read:
    raises TrainingError where one was changed, which would be lost. Other models are left alone.
    """
    if not any(map(is_sharded, model.parameters())):
        yield
        return
    shards: list[Any] = [module for module in model.modules() if hasattr(module, "unshard")]
    for shard in shards:  # the model itself first: FSDP2 takes it for the root
        shard.unshard()
    shards[0].set_reshard_after_forward(False)
    versions = [parameter._version for parameter in model.parameters()]
    try:
        yield
        if versions != [parameter._version for parameter in model.parameters()]:
            raise TrainingError(
                "weights were changed while each process had a copy of them",
                "change them in on_step, where a callback sees the parts that are trained",
            )
    finally:
        shards[0].set_reshard_after_forward(True)
        for shard in shards:
            shard.reshard()
