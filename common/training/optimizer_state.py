"""Convert the state of an optimizer to named tensors and JSON for checkpoints, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from common.errors import CheckpointError
from common.models.shards import is_sharded


def pack_optimizer(
    optimizer: torch.optim.Optimizer,
) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """Return (param groups as JSON, tensors by `optimizer.<parameter index>.<name>`)."""
    # Not by state_dict(), whose first call imports PyTorch's compiler.
    groups = [
        {key: value for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]
    tensors = {
        f"optimizer.{index}.{name}": value
        for index, parameter in enumerate(_parameters(optimizer))
        for name, value in optimizer.state[parameter].items()
    }
    return groups, tensors


def unpack_optimizer(
    optimizer: torch.optim.Optimizer,
    groups: list[dict[str, Any]],
    tensors: Mapping[str, torch.Tensor],
) -> None:
    """Restore the tensors that `pack_optimizer` returned; hyperparameters come from the configuration.

    Raises CheckpointError if the parameters have other groups or shapes.
    """
    parameters = _parameters(optimizer)
    was, now = (
        [(group["algorithm"], group["param_names"]) for group in each]
        for each in (groups, optimizer.param_groups)
    )
    if was != now:
        raise CheckpointError(
            "the optimizer state does not fit: its parameters were grouped differently",
            "restore optimizer.name, optimizer.lr_factors, and whether weights decay",
        )
    for key, value in with_prefix(tensors, "optimizer.").items():
        index, name = key.split(".", 1)
        if int(index) >= len(parameters) or value.shape not in (
            parameters[int(index)].shape,
            torch.Size([]),
        ):
            raise CheckpointError(f"the optimizer state does not fit: parameter {index}, {name}")
        optimizer.state[parameters[int(index)]][name] = value


def sharded_parameters(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    """How the tensors of training are sharded, as `latest_checkpoint` takes it as `parts`."""
    parts: dict[str, torch.Tensor] = dict(model.named_parameters())
    for index, parameter in enumerate(_parameters(optimizer)):
        parts[f"optimizer.{index}"] = parameter
    return {name: part for name, part in parts.items() if is_sharded(part)}


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def with_prefix(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Tensors whose names start with the prefix, without it."""
    return {k.removeprefix(prefix): tensor for k, tensor in tensors.items() if k.startswith(prefix)}
