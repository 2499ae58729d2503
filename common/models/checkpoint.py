"""Read and write checkpoint folders atomically. The only module that knows their layout.

    step_200/
        model.safetensors       weights
        training.safetensors    optimizer moments and random states (training checkpoints only)
        state.json              model class and arguments, step, all other values that are no tensors
        SHA256SUMS              of the files above, in the format of `sha256sum -c`

For a sharded model, `shard-*.safetensors` replace the first two (see shards.py): each rank writes
one, and any number of processes can read them.

A folder is written under a temporary name, fsynced and renamed, so `step_200` is always complete.
Nothing is read with pickle.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from safetensors.torch import load_model as load_weights
from torch import nn

from common.errors import CheckpointError, ResearchError, did_you_mean
from common.models import shards
from common.models.lora import lora_as_saved
from common.models.quantize import quantize_as_saved
from common.utils.files import fsync_dir, fsync_file, read_json, sha256_of

M = TypeVar("M", bound=nn.Module)
_TRAINING_KINDS = {
    "step": int,
    "tokens": int,
    "log_rows": int,
    "fingerprint": dict,
    "training": dict,
}
_OPTIONAL_KINDS = {"vocab_size": int, "quantization": dict, "lora": dict}  # of the model


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint with verified checksums.

    Args:
        device: device to read tensors to.
        parts: which tensors to shard, and how: `optimizer.3.exp_avg` like `optimizer.3`,
            `trained.head.weight` or `callback.Mine.0.mean.head.weight` like `head.weight`.
    """

    path: Path
    state: dict[str, Any]
    device: str | torch.device = "cpu"
    parts: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Read all tensors except the weights of the model."""
        if _is_whole(self.path) and not self.parts:
            file = self.path / "training.safetensors"
            return load_file(file, device=str(self.device)) if file.exists() else {}
        return shards.read_training(self.path, self._template, self.device)

    def _template(self, name: str) -> torch.Tensor | None:
        words = name.split(".")
        keys = [".".join(words[:2]), *(".".join(words[start:]) for start in range(1, len(words)))]
        return next((self.parts[key] for key in keys if key in self.parts), None)


class SavedModel(Protocol):
    """The description of a model in a checkpoint, besides its weights."""

    quantization: dict[str, Any] | None
    lora: dict[str, Any] | None

    def constructor_arguments(self) -> dict[str, Any]: ...


def identity_of(model: SavedModel) -> dict[str, Any]:
    """Return what `load_model` needs to rebuild the model."""
    kind = shards.class_of(model)
    identity = {"class": f"{kind.__module__}.{kind.__qualname__}", **model.constructor_arguments()}
    changes = {"quantization": model.quantization, "lora": model.lora}
    return identity | {name: settings for name, settings in changes.items() if settings}


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and persistent buffers by name; tied ones once. Without the base of LoRA adapters."""
    kept = model.state_dict().keys()
    parameters = dict(model.named_parameters())
    if getattr(model, "lora", None):
        parameters = {name: p for name, p in parameters.items() if p.requires_grad}
    found = [*parameters.items(), *model.named_buffers()]
    return {name: tensor.detach() for name, tensor in found if name in kept}


def save_checkpoint(
    path: Path,
    weights: Mapping[str, torch.Tensor],
    state: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
) -> Path:
    """Write a checkpoint folder; an error (such as a full disk) leaves nothing behind.
    `state["model"]` is the result of `identity_of`; `tensors` are all tensors except the weights.
    """
    building = temporary_folder(path)
    try:
        make_empty(building)
        files = [*_write_tensors(building, weights, tensors), write_state(building, state)]
        publish(building, path, seal(files))
    except (OSError, SafetensorError) as error:
        raise save_error(path, str(error)) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return path


# The steps of a save, also used by checkpoints that several processes write together.


def temporary_folder(path: Path) -> Path:
    """Where this process builds the checkpoint `path`."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def make_empty(directory: Path) -> None:
    """Create the folder, or empty an existing one."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)


def _write_tensors(
    directory: Path, weights: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor]
) -> list[Path]:
    files = []
    for name, content in (("model", weights), ("training", tensors)):
        if content:
            files.append(directory / f"{name}.safetensors")
            save_file({key: tensor.contiguous() for key, tensor in content.items()}, files[-1])
    return files


def write_state(directory: Path, state: Mapping[str, Any]) -> Path:
    """Write state.json; return its path."""
    (directory / "state.json").write_text(json.dumps(state, indent=2))
    return directory / "state.json"


def seal(files: Iterable[Path]) -> list[str]:
    """Fsync `files`; return their lines of SHA256SUMS."""
    lines = []
    for file in files:
        fsync_file(file)
        lines.append(_checksum(file))
    return lines


def publish(building: Path, path: Path, lines: Iterable[str]) -> None:
    """Add SHA256SUMS with these lines to a finished folder, and rename it to its final name,
    replacing an earlier one."""
    sums = building / "SHA256SUMS"
    sums.write_text("".join(sorted(lines, key=lambda line: line.split("  ")[1])))
    fsync_file(sums)
    fsync_dir(building)
    delete(replaced(path))
    if path.exists():
        path.rename(replaced(path))
    building.rename(path)
    fsync_dir(path.parent)
    delete(replaced(path))


def save_error(path: Path, reason: str) -> CheckpointError:
    """The error for a checkpoint that cannot be written."""
    return CheckpointError(
        f"cannot save {path}: {reason}", "free some disk space; earlier checkpoints are intact"
    )


def delete(path: Path) -> None:
    """Delete a file or folder, if it exists."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def replaced(path: Path) -> Path:
    """Path of a checkpoint while it is replaced; a kill may leave only this one."""
    return path.with_name(f".{path.name}.replaced")


def verify(path: Path) -> None:
    """Raise CheckpointError if the folder is missing, incomplete, or any byte of it has changed."""
    sums = path / "SHA256SUMS"
    if not sums.is_file():
        near = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
        hint = did_you_mean(path.name, near) if near else "check the path"
        raise CheckpointError(f"{path} is not a checkpoint", hint)
    try:
        found = _checksums(path)
    except OSError as error:  # unreadable, or a folder
        raise CheckpointError(
            f"checkpoint {path} is damaged: {error}", "use an earlier one"
        ) from error
    if sums.read_bytes() != found.encode():
        recorded = sums.read_text(errors="replace").splitlines()
        wrong = [line.partition("  ")[2] for line in found.splitlines() if line not in recorded]
        raise CheckpointError(
            f"checkpoint {path} is damaged: {', '.join(wrong) or 'SHA256SUMS'}",
            "use an earlier one",
        )


def _checksums(directory: Path) -> str:
    """The content of SHA256SUMS: a line for every other file, sorted by name."""
    files = sorted(file for file in directory.iterdir() if file.name != "SHA256SUMS")
    return "".join(map(_checksum, files))


def _checksum(file: Path) -> str:
    return f"{sha256_of(file)}  {file.name}\n"


def _is_whole(path: Path) -> bool:
    return (path / "model.safetensors").exists()


def load_checkpoint(path: Path, device: str | torch.device = "cpu") -> Checkpoint:
    """Read a checkpoint without its weights. Raises CheckpointError if it is damaged."""
    if not path.exists() and replaced(path).exists():
        path = replaced(path)
    verify(path)
    return Checkpoint(path, read_state(path), device)


def read_state(path: Path) -> dict[str, Any]:
    """Read the state.json of the checkpoint `path`. Raises CheckpointError if it is malformed."""
    state = read_json(path / "state.json", CheckpointError)
    with state_errors(path):
        model = state["model"]
        wrong = [
            *_wrong_keys(model, {"class": str, "arguments": dict}),
            *_wrong_keys(model, {k: v for k, v in _OPTIONAL_KINDS.items() if k in model}),
            *_wrong_keys(state, _TRAINING_KINDS if "param_groups" in state else {}),
        ]
    if wrong:
        raise _no_state(path, f"{wrong[0]} is missing, or has a wrong type or size")
    return dict(state)


def _wrong_keys(values: Mapping[str, Any], kinds: Mapping[str, type]) -> list[str]:
    def fits(value: Any, kind: type) -> bool:
        if isinstance(value, int):
            return kind is int and 0 <= value < 2**63 and not isinstance(value, bool)
        return isinstance(value, kind)

    return [key for key, kind in kinds.items() if not fits(values.get(key), kind)]


@contextmanager
def state_errors(path: Path) -> Iterator[None]:
    """Turn errors that an edited state.json causes in the block into a CheckpointError."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        reason = " ".join(str(error).split())[:200]
        raise _no_state(path, f"{type(error).__name__}: {reason}") from error


def _no_state(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{path / 'state.json'} does not describe a checkpoint: {reason}", "use an earlier one"
    )


def load_model(target: M | type[M], path: str | Path, device: str | torch.device = "cpu") -> M:
    """Load the weights at `path` into `target`, or build the model first if `target` is a class.

    A class includes its imported subclasses: the saved one is built. A given model keeps its
    device. Raises CheckpointError for a damaged checkpoint or other shapes.
    """
    saved = load_checkpoint(Path(path))
    model = target if isinstance(target, nn.Module) else _build(target, saved).to(device)
    fill_model(model, saved)
    return model


def _build(base: type[M], saved: Checkpoint) -> M:
    identity = saved.state["model"]
    kind = _saved_class(base, identity["class"])
    sizes = [identity["vocab_size"]] if "vocab_size" in identity else []
    try:
        return kind(*sizes, **identity["arguments"])
    except (TypeError, ValueError, ArithmeticError, RuntimeError, ResearchError) as error:
        raise CheckpointError(
            f"{saved.path} holds a {identity['class']}, which is no {kind.__name__}: {error}"
        ) from error


def _saved_class(base: type[M], name: str) -> type[M]:
    # Search only classes already imported: a file never decides what is imported.
    pending = [base]
    while pending:
        kind = pending.pop()
        if f"{kind.__module__}.{kind.__qualname__}" == name:
            return kind
        pending.extend(kind.__subclasses__())
    if getattr(base.forward, "__isabstractmethod__", False):
        raise CheckpointError(f"the checkpoint holds a {name}", "import that class before loading")
    return base  # perhaps saved under another name


def fill_model(model: nn.Module, saved: Checkpoint) -> None:
    """Load the weights of a checkpoint into `model`, or into the shards of it in this process.

    A quantised checkpoint quantises the model; one without LoRA adapters merges those of the model.
    """
    adapters = saved.state["model"].get("lora")
    lora_as_saved(model, adapters)
    if quantization := saved.state["model"].get("quantization"):
        quantize_as_saved(model, quantization)
    weights = weights_of(model)
    sharded = any(map(shards.is_sharded, weights.values())) or not _is_whole(saved.path)
    if sharded or adapters:  # not all tensors of the model
        shards.read_weights(saved.path, weights)
        return
    device = next(model.parameters()).device
    try:
        load_weights(model, saved.path / "model.safetensors", device=str(device))
    except (RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"the weights at {saved.path} do not fit the model: {reason}"
        ) from error
