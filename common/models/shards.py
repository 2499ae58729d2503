"""Sharded tensors (DTensors of FSDP2) in checkpoint files.

The format is the safetensors storage of torch.distributed.checkpoint: each process writes
`shard-00001-model-00001-of-00001.safetensors` with its shards and their offsets, and any number of
processes reads what it needs. (Its other storage reads pickles.) Names of tensors that are not
weights start with `training.`, which no weight name does, since `nn.Module` has an attribute
`training`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from common.errors import CheckpointError

# PyTorch's modules for this take 1 s to import, and most trainings do not need them.

# Prefix of tensors that are not weights; earlier versions did not have it.
_TRAINING = "training."
_PREFIXES = ("optimizer.", "trained.", "rng.", "callback.")


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether this process holds only a shard of `tensor`."""
    return hasattr(tensor, "placements")


def class_of(model: object) -> type:
    """The original class of a model, without the one that FSDP2 adds."""
    if not hasattr(model, "unshard"):
        return type(model)
    from torch.distributed.fsdp import FSDPModule

    return next(kind for kind in type(model).__mro__ if not issubclass(kind, FSDPModule))


def write_shards(
    directory: Path,
    weights: Mapping[str, torch.Tensor],
    training: Mapping[str, torch.Tensor],
    rank: int,
) -> list[Path]:
    """Write this process's shards and return the written files; all processes call it together.
    Unsharded tensors are the same in all processes and are written by one.

    A failure in one process raises OSError in all.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    tensors = {**weights, **{_TRAINING + name: tensor for name, tensor in training.items()}}
    writer = HuggingFaceStorageWriter(str(directory), save_distributed=True)
    try:
        save({name: t.contiguous() for name, t in tensors.items()}, storage_writer=writer)
    except CheckpointException as error:
        reasons = {str(failure) for failure, _ in error.failures.values()}
        raise OSError("; ".join(sorted(reasons))) from error
    return sorted(directory.glob(f"shard-{rank + 1:05d}-*.safetensors"))


def read_training(
    directory: Path,
    like: Callable[[str], torch.Tensor | None],
    device: str | torch.device,
) -> dict[str, torch.Tensor]:
    """Read all tensors except the weights, sharded like `like(name)`; if that is None, whole, on `device`.

    `directory` may also contain ordinary safetensors files.
    """
    _, found = _contents(directory)
    tensors = {}
    for name, (_, facts) in found.items():
        template = like(name)
        if template is not None and template.shape == facts.size:
            tensors[name] = torch.empty_like(template, dtype=facts.properties.dtype)
        else:
            tensors[name] = torch.empty(facts.size, dtype=facts.properties.dtype, device=device)
    _read_into(directory, {stored: tensors[name] for name, (stored, _) in found.items()})
    return tensors


def read_weights(directory: Path, weights: Mapping[str, torch.Tensor]) -> None:
    """Load tensors into `weights`, whole or sharded, by name.

    Raises CheckpointError if names or shapes differ.
    """
    found, _ = _contents(directory)
    missing = sorted(weights.keys() - found.keys())
    unexpected = sorted(found.keys() - weights.keys())
    differing = [
        f"{name} {tuple(found[name].size)} instead of {tuple(tensor.shape)}"
        for name, tensor in weights.items()
        if name in found and found[name].size != tensor.shape
    ]
    if missing or unexpected or differing:
        reasons = (("missing", missing), ("unexpected", unexpected), ("shape", differing))
        text = "; ".join(f"{what}: {', '.join(names)}" for what, names in reasons if names)
        raise CheckpointError(f"the weights at {directory} do not fit the model: {text}")
    _read_into(directory, weights)


def _contents(directory: Path) -> tuple[dict[str, Any], dict[str, tuple[str, Any]]]:
    """Return ({weight: metadata}, {other tensor: (name in its file, metadata)})."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    metadata = HuggingFaceStorageReader(str(directory)).read_metadata()
    facts = metadata.state_dict_metadata
    if (directory / "model.safetensors").exists():
        files = {
            index.fqn: Path(at.relative_path).name for index, at in metadata.storage_data.items()
        }
        training = {name: name for name in facts if files[name] != "model.safetensors"}
    else:
        training = {
            name: name.removeprefix(_TRAINING) for name in facts if name.startswith(_TRAINING)
        }
        if not training:  # written by earlier versions
            training = {name: name for name in facts if name.startswith(_PREFIXES)}
    weights = {name: facts[name] for name in facts if name not in training}
    return weights, {name: (stored, facts[stored]) for stored, name in training.items()}


def _read_into(directory: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = HuggingFaceStorageReader(str(directory))
    with warnings.catch_warnings():
        # Each process plans its own reads, so that none waits for another.
        warnings.filterwarnings("ignore", message=".*intent is to load in a single process")
        load(dict(tensors), storage_reader=reader, no_dist=True)
