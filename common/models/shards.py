"""Sharded tensors (FSDP2's DTensors, of which each process holds a part) in the files of a checkpoint.

The files are those of torch.distributed.checkpoint in its safetensors storage: a process writes
`shard-00001-model-00001-of-00001.safetensors` with its shards and where in the whole they belong.
Any number of processes reads them, each what it needs. Its other storage reads pickles. The names
of what is not a weight begin with `training.`, which no weight's does: `nn.Module` has it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from common.errors import CheckpointError

# PyTorch's own modules for this take 1 s to import, and most trainings need none of them.

# Begins the names of what is not a weight; earlier versions had no word for all of it.
_TRAINING = "training."
_PREFIXES = ("optimizer.", "trained.", "rng.", "callback.")


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether this process holds only a part of `tensor`."""
    return hasattr(tensor, "placements")


def class_of(model: object) -> type:
    """The class that a model was built from; FSDP2 puts its own before it."""
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
    """Write this process's shards; all processes call it at once. Returns the files it wrote.

    Tensors that are whole are the same in all processes, and written by one of them. What fails in
    one process is an OSError in all.
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
    """All tensors but the weights, split as `like(name)` is; whole, on `device`, where it is None.

    `directory` may as well hold ordinary safetensors files.
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
    """Fill `weights`, whole or sharded, with the tensors of the same names.

    Raises CheckpointError when names or shapes differ.
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
    """TensorStorageMetadata (size, properties.dtype): of the weights, and (name in its file, ...) of all else."""
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
        if not training:  # as earlier versions wrote it
            training = {name: name for name in facts if name.startswith(_PREFIXES)}
    weights = {name: facts[name] for name in facts if name not in training}
    return weights, {name: (stored, facts[stored]) for stored, name in training.items()}


def _read_into(directory: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = HuggingFaceStorageReader(str(directory))
    with warnings.catch_warnings():
        # Each process plans by itself what it reads, so that none waits for another.
        warnings.filterwarnings("ignore", message=".*intent is to load in a single process")
        load(dict(tensors), storage_reader=reader, no_dist=True)
