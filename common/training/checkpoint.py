"""Checkpoints: atomic, complete, exact. The only module that knows their layout.

    step_200/
        model.safetensors       weights
        training.safetensors    optimizer moments and random states (training checkpoints only)
        state.json              model class and arguments, step, everything that is not a tensor
        SHA256SUMS              of the files above, as `sha256sum -c` reads it

Of a model that several processes have parts of, `shard-*.safetensors` take the place of the first
two: each process writes one (see sharded.py), and any number of processes can read them. There the
names of what is not a weight begin with `training.`, which no weight's does: `nn.Module` has it.

A folder is written under another name, fsynced and renamed, so `step_200` is always whole. Nothing
is read with pickle.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from safetensors.torch import load_model as load_weights

from common.errors import CheckpointError, ResearchError, did_you_mean
from common.models.base import BaseLanguageModel
from common.training import sharded
from common.training.distributed import DistributedContext
from common.utils.files import fsync_dir, fsync_file, read_json, sha256_of, write_json_atomic
from common.utils.logging import get_logger

M = TypeVar("M", bound=BaseLanguageModel)
_TRAINING_KINDS = {
    "step": int,
    "tokens": int,
    "log_rows": int,
    "fingerprint": dict,
    "training": dict,
}
_STEP = re.compile(r"step_(\d+)")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose checksums are right.

    Args:
        device: where its tensors are read to.
        parts: which tensors to split, and how: what is called `optimizer.3.exp_avg` as `optimizer.3`,
            `trained.head.weight` or `callback.Mine.0.mean.head.weight` as `head.weight`.
    """

    path: Path
    state: dict[str, Any]
    device: str | torch.device = "cpu"
    parts: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything but the weights of the model."""
        if _is_whole(self.path) and not self.parts:
            file = self.path / "training.safetensors"
            return load_file(file, device=str(self.device)) if file.exists() else {}
        return sharded.read_training(self.path, self._template, self.device)

    def _template(self, name: str) -> torch.Tensor | None:
        words = name.split(".")
        keys = [".".join(words[:2]), *(".".join(words[start:]) for start in range(1, len(words)))]
        return next((self.parts[key] for key in keys if key in self.parts), None)


def save_model(model: BaseLanguageModel, path: Path, state: Mapping[str, Any]) -> Path:
    """Write weights, arguments and `state` (JSON) to the folder `path`, replacing what is there."""
    return save_checkpoint(path, weights_of(model), {"model": identity_of(model), **state}, {})


def identity_of(model: BaseLanguageModel) -> dict[str, Any]:
    """What `load_model` needs to build the model again."""
    kind = sharded.class_of(model)
    identity = {
        "class": f"{kind.__module__}.{kind.__qualname__}",
        "vocab_size": model.vocab_size,
        "arguments": model.arguments,
    }
    return identity | ({"quantization": model.quantization} if model.quantization else {})


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and persistent buffers by name; those that share memory (tied) once."""
    kept = model.state_dict().keys()
    found = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach() for name, tensor in found if name in kept}


def save_checkpoint(
    path: Path,
    weights: Mapping[str, torch.Tensor],
    state: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
) -> Path:
    """Write a checkpoint folder. On an error (a full disk, say) nothing of it remains.

    `state["model"]` is what `identity_of` says; `tensors` is everything but the weights.
    """
    building = _building(path)
    try:
        _make_empty(building)
        _write_files(building, weights, state, tensors)
        _publish(building, path)
    except (OSError, SafetensorError) as error:
        raise _cannot_save(path, str(error)) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return path


def save_parts(
    path: Path,
    weights: Mapping[str, torch.Tensor],
    state: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    context: DistributedContext,
) -> Path:
    """`save_checkpoint` of a sharded model, called by all processes at once: each writes its parts."""
    building = context.from_main(_building(path))
    lines: list[str] = []
    try:
        with _all_or_none(path, context):
            if context.is_main:
                _make_empty(building)
        with _all_or_none(path, context):
            files = sharded.write_parts(building, weights, tensors, context.rank)
            if context.is_main:
                files.append(_write_state(building, state))
            for file in files:
                fsync_file(file)
            lines = [_checksum(file) for file in files]
        lines = [line for own in context.gather(lines) for line in own]
        with _all_or_none(path, context):
            if context.is_main:
                lines.sort(key=lambda line: line.split("  ")[1])
                (building / "SHA256SUMS").write_text("".join(lines))
                fsync_file(building / "SHA256SUMS")
                fsync_dir(building)
                _publish(building, path)
    finally:
        if context.is_main:
            shutil.rmtree(building, ignore_errors=True)
    return path


@contextmanager
def _all_or_none(path: Path, context: DistributedContext) -> Iterator[None]:
    """What fails in one process is a CheckpointError in all of them; none goes on alone."""
    problem = None
    try:
        yield
    except (OSError, SafetensorError) as error:
        problem = str(error)
    problems = [found for found in context.gather(problem) if found is not None]
    if problems:
        raise _cannot_save(path, problems[0])


def _cannot_save(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"cannot save {path}: {reason}", "free some disk space; earlier checkpoints are whole"
    )


def _building(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _make_empty(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)


def _publish(building: Path, path: Path) -> None:
    """Give a folder that is wholly on disk its name, in place of what had it."""
    _delete(_replaced(path))
    if path.exists():
        path.rename(_replaced(path))
    building.rename(path)
    fsync_dir(path.parent)
    _delete(_replaced(path))


def _write_files(
    directory: Path,
    weights: Mapping[str, torch.Tensor],
    state: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
) -> None:
    for name, content in (("model", weights), ("training", tensors)):
        if content:
            contiguous = {key: tensor.contiguous() for key, tensor in content.items()}
            save_file(contiguous, directory / f"{name}.safetensors")
    _write_state(directory, state)
    (directory / "SHA256SUMS").write_text(_checksums(directory))
    for file in directory.iterdir():
        fsync_file(file)
    fsync_dir(directory)


def _write_state(directory: Path, state: Mapping[str, Any]) -> Path:
    (directory / "state.json").write_text(json.dumps(state, indent=2))
    return directory / "state.json"


def _replaced(path: Path) -> Path:
    """Where a checkpoint is while a new one takes its place; a kill may leave only this one."""
    return path.with_name(f".{path.name}.replaced")


def verify(path: Path) -> None:
    """Raise CheckpointError when the folder is missing, incomplete, or any byte of it has changed."""
    sums = path / "SHA256SUMS"
    if not sums.is_file():
        near = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
        hint = did_you_mean(path.name, near) if near else "check the path"
        raise CheckpointError(f"{path} is not a checkpoint", hint)
    try:
        found = _checksums(path)
    except OSError as error:  # it cannot be read, or is a folder
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
    """What SHA256SUMS has to say: a line for every other file, in the order of their names."""
    files = sorted(file for file in directory.iterdir() if file.name != "SHA256SUMS")
    return "".join(map(_checksum, files))


def _checksum(file: Path) -> str:
    return f"{sha256_of(file)}  {file.name}\n"


def _is_whole(path: Path) -> bool:
    return (path / "model.safetensors").exists()


def load_checkpoint(path: Path, device: str | torch.device = "cpu") -> Checkpoint:
    """Read a checkpoint without its weights. Raises CheckpointError when it is not whole."""
    if not path.exists() and _replaced(path).exists():
        path = _replaced(path)
    verify(path)
    return Checkpoint(path, read_state(path), device)


def read_state(path: Path) -> dict[str, Any]:
    """The state.json of the checkpoint `path`. Raises CheckpointError where it is none of a checkpoint."""
    state = read_json(path / "state.json", CheckpointError)
    with state_errors(path):
        model = state["model"]
        wrong = [
            *_wrong_keys(model, {"class": str, "vocab_size": int, "arguments": dict}),
            *_wrong_keys(
                model, {"quantization": dict} if model.get("quantization") is not None else {}
            ),
            *_wrong_keys(state, _TRAINING_KINDS if "param_groups" in state else {}),
        ]
    if wrong:
        raise _no_state(path, f"{wrong[0]} is missing, or of another kind or size")
    return dict(state)


def _wrong_keys(values: Mapping[str, Any], kinds: Mapping[str, type]) -> list[str]:
    def fits(value: Any, kind: type) -> bool:
        if isinstance(value, int):
            return kind is int and 0 <= value < 2**63 and not isinstance(value, bool)
        return isinstance(value, kind)

    return [key for key, kind in kinds.items() if not fits(values.get(key), kind)]


@contextmanager
def state_errors(path: Path) -> Iterator[None]:
    """Make what the values of a state.json that was edited cause in the block a CheckpointError."""
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
    """Fill `target` with the weights at `path`, or build it first when it is a class.

    `BaseLanguageModel` itself stands for whichever imported subclass was saved. A model that is
    given stays on its device. Raises CheckpointError for a damaged checkpoint or other shapes.
    """
    saved = load_checkpoint(Path(path))
    identity = saved.state["model"]
    if isinstance(target, BaseLanguageModel):
        model = target
    else:
        kind = _subclass(target, identity["class"]) if target is BaseLanguageModel else target
        try:
            model = kind(identity["vocab_size"], **identity["arguments"]).to(device)
        except (TypeError, ValueError, ArithmeticError, RuntimeError, ResearchError) as error:
            raise CheckpointError(
                f"{saved.path} holds a {identity['class']}, which is no {kind.__name__}: {error}"
            ) from error
    fill_model(model, saved)
    return model


def fill_model(model: BaseLanguageModel, saved: Checkpoint) -> None:
    """Give `model`, or the parts of it that this process has, the weights of a checkpoint.

    A model whose checkpoint is quantised becomes so.
    """
    if quantization := saved.state["model"].get("quantization"):
        from common.models.quantize import quantize_as_saved

        quantize_as_saved(model, quantization)
    weights = weights_of(model)
    if any(map(sharded.is_part, weights.values())) or not _is_whole(saved.path):
        sharded.read_weights(saved.path, weights)
        return
    try:
        load_weights(model, saved.path / "model.safetensors", device=str(model.device))
    except (RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"the weights at {saved.path} do not fit the model: {reason}"
        ) from error


def _subclass(base: type[M], name: str) -> type[M]:
    # Found among the classes already imported: a file never decides what gets imported.
    pending = list(base.__subclasses__())
    while pending:
        kind = pending.pop()
        if f"{kind.__module__}.{kind.__qualname__}" == name:
            return kind
        pending.extend(kind.__subclasses__())
    raise CheckpointError(f"the checkpoint holds a {name}", "import that class before loading")


def steps_in(directory: Path) -> list[int]:
    """The steps that have a checkpoint folder, ascending."""
    if not directory.is_dir():
        return []
    found = (_STEP.fullmatch(entry.name) for entry in directory.iterdir())
    return sorted(int(match[1]) for match in found if match)


def latest_checkpoint(
    directory: Path,
    device: str | torch.device = "cpu",
    context: DistributedContext | None = None,
    parts: Mapping[str, torch.Tensor] | None = None,
) -> Checkpoint | None:
    """The newest whole checkpoint; damaged ones are passed over with a warning that names them.

    The main one of several processes looks for it, the others read the same. `parts`: see Checkpoint.
    """
    context = context or DistributedContext()
    path = context.from_main(_newest_whole(directory) if context.is_main else None)
    if path is None:
        return None
    return Checkpoint(path, read_state(path), device, parts or {})


def _newest_whole(directory: Path) -> Path | None:
    for step in reversed(steps_in(directory)):
        try:
            return load_checkpoint(directory / f"step_{step}").path
        except CheckpointError as error:
            get_logger("checkpoint").warning(f"{error.message}; trying the one before")
    return None


def mark_best(directory: Path, step: int | None, loss: float) -> None:
    """Record that `step` has the lowest validation loss (nats per token) so far; None: no step has."""
    if step is None:
        (directory / "best.json").unlink(missing_ok=True)
    else:
        write_json_atomic(directory / "best.json", {"step": step, "loss": loss})


def best_checkpoint(directory: Path) -> Path:
    """The checkpoint with the lowest validation loss, or the latest when none was marked."""
    mark = directory / "best.json"
    if mark.exists():
        hint = "choose a checkpoint by its step; a resume writes this file again"
        try:
            return directory / f"step_{int(read_json(mark, CheckpointError, hint)['step'])}"
        except (TypeError, KeyError, ValueError) as error:
            raise CheckpointError(f"{mark} names no step", hint) from error
    steps = steps_in(directory)
    if not steps:
        raise CheckpointError(f"there is no checkpoint in {directory}", "train the model first")
    return directory / f"step_{steps[-1]}"


def delete_old_checkpoints(directory: Path, step: int, keep: int) -> None:
    """Delete all but the best and the latest `keep` up to `step`, which was just saved.

    Later ones are damaged (training was resumed before them); they are replaced when it comes
    there. Half-written folders of a killed process go as well.
    """
    best = best_checkpoint(directory)
    for old in [s for s in steps_in(directory) if s <= step][:-keep]:
        if (path := directory / f"step_{old}") != best:
            path.rename(_replaced(path))  # a kill must not leave half of it under its name
    for rubbish in directory.glob(".step_*"):
        _delete(rubbish)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
