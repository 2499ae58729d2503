"""Measure `precision: auto` and `compile: auto`: the real model, on the real device, on a real batch.

Choices are cached in assets/cache/autotune.json, keyed by everything that they depend on, so a
second run of the same model starts at once. Speed cannot be predicted: bf16 is 5 times faster than
fp32 on one CPU and 50 times slower on the next.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from common.data.batch import Batch
from common.errors import TrainingError
from common.models.base import BaseModel
from common.training.objective import Objective
from common.training.precision import autocast, matmul_precision, supported_precisions
from common.utils.file_locks import file_lock
from common.utils.files import read_json, write_json_atomic
from common.utils.logging import get_logger
from common.utils.paths import display_path, get_assets_dir
from common.utils.seeding import get_rng_state, set_rng_state

# Compiling takes a minute or more on two cores, and rarely saves more than a third of a step.
_COMPILE_IF_LONGER_THAN_SECONDS = 600.0
_MIN_STEPS = 20  # shorter runs end before a measurement pays
_ROUNDS = 3
_COMPILED = ", compiled"
# Timed after the others, and compiling costs a minute: require a clear gain.
_COMPILE_GAIN = 1.15
log = get_logger("autotune")


@dataclass(frozen=True)
class Choice:
    """A precision, whether to compile, and the measured seconds per forward and backward pass."""

    precision: str
    compile: bool
    seconds: dict[str, float]


def autotune(
    model: BaseModel,
    objective: Objective,
    batch: Batch,
    precision: str,
    compile: bool | str,
    passes: int,
    shared: Path | None = None,
) -> Choice:
    """Resolve what is `auto`; the model, its gradients and all random states are unchanged.

    Args:
        batch: a batch of the shape used in training, already on the model's device.
        passes: number of forward and backward passes in the training.
        shared: file that makes several runs (trials of a sweep) agree: the first run measures and
            writes it, all others read it, whatever their model and machine.

    Raises TrainingError if this device does not support the shared precision.
    """
    if shared is not None and "auto" in (precision, compile):
        return _agree(shared, model, objective, batch, precision, compile, passes)
    if precision != "auto" and compile != "auto":
        return Choice(precision, bool(compile), {})
    if passes < _MIN_STEPS:
        return Choice("fp32" if precision == "auto" else precision, compile is True, {})
    key = _key(model, batch, precision, compile)
    path = get_assets_dir() / "cache" / "autotune.json"
    before = _parse(_read(path).get(key), _candidates(precision, model.device))
    if before is not None and not _is_compiling_open(before, compile, passes):
        log.info(_describe(before, "measured before"))
        return before
    with _unchanged(model):
        choice = _measure(model, lambda: objective.loss(model, batch), precision, compile, passes)
    try:
        write_json_atomic(path, _read(path) | {key: asdict(choice)})
    except OSError as error:
        log.warning(f"cannot cache the measurement: {path}: {error.strerror}")
    log.info(_describe(choice, "measured now"))
    return choice


def _agree(
    path: Path,
    model: BaseModel,
    objective: Objective,
    batch: Batch,
    precision: str,
    compile: bool | str,
    passes: int,
) -> Choice:
    """Precision and compilation are shared separately: a run may set one of them."""
    with file_lock(path.with_suffix(".lock")):
        agreed = read_json(path, TrainingError) if path.exists() else {}
        ours = [key for key, v in (("precision", precision), ("compile", compile)) if v == "auto"]
        precision = agreed.get("precision", precision) if precision == "auto" else precision
        compile = agreed.get("compile", compile) if compile == "auto" else compile
        if "auto" not in (precision, compile):
            if precision not in supported_precisions(model.device):
                raise TrainingError(
                    f"the other runs compute in {precision}, which {model.device.type} does not support",
                    "use machines of one kind, or set training.precision for all runs",
                )
            choice = Choice(precision, bool(compile), {})
            log.info(_describe(choice, f"as agreed in {display_path(path)}"))
            return choice
        # Measure even for a short run: longer ones use the result.
        choice = autotune(model, objective, batch, precision, compile, max(passes, _MIN_STEPS))
        found = {"precision": choice.precision, "compile": choice.compile}
        facts = {"seconds": choice.seconds, "host": platform.node(), "device": model.device.type}
        write_json_atomic(path, {key: found[key] for key in ours} | agreed | {"measured": facts})
    return choice


def _read(path: Path) -> dict[str, Any]:
    """The cached choices; an unreadable or malformed file is replaced."""
    with suppress(TrainingError):
        if isinstance(known := read_json(path, TrainingError), dict):
            return known
    return {}


def _candidates(precision: str, device: torch.device) -> list[str]:
    if precision != "auto":
        return [precision]
    # Only users can decide to accept the range of fp16.
    return [name for name in supported_precisions(device) if name != "fp16"]


def _parse(entry: Any, candidates: list[str]) -> Choice | None:
    """The choice stored in `entry`, or None if it is not one of `candidates`."""
    try:
        choice = Choice(**entry)
        seconds = [float(value) for value in choice.seconds.values()]
    except (TypeError, ValueError, AttributeError):
        return None
    possible = choice.precision in choice.seconds and isinstance(choice.compile, bool)
    possible = possible and choice.precision in candidates
    return choice if possible and all(value > 0 for value in seconds) else None


def _measure(
    model: BaseModel,
    loss: Callable[[], torch.Tensor],
    precision: str,
    compile: bool | str,
    passes: int,
) -> Choice:
    candidates = _candidates(precision, model.device)
    seconds = _time_all({name: _pass(model, loss, name) for name in candidates})
    # Ties go to fp32: a gain within the noise is no gain.
    best = min(seconds, key=lambda name: seconds[name] * (1.0 if name == "fp32" else 1.05))
    choice = Choice(best, compile is True, {n: round(value, 6) for n, value in seconds.items()})
    if not _is_compiling_open(choice, compile, passes):
        return choice
    compiled = f"{best}{_COMPILED}"
    run = _pass(model, loss, best)
    model.set_compile(True)
    try:
        # Time both again, alternating: other load on the machine then slows both.
        both = _time_all({best: _uncompiled(run), compiled: run})
    finally:
        model.set_compile(False)
    both[best] = min(both[best], seconds[best])
    seconds = choice.seconds | {name: round(value, 6) for name, value in both.items()}
    return Choice(best, both[compiled] * _COMPILE_GAIN < both[best], seconds)


def _uncompiled(run: Callable[[], None]) -> Callable[[], None]:
    def eagerly() -> None:
        with torch.compiler.set_stance("force_eager"):
            run()

    return eagerly


def _is_compiling_open(choice: Choice, compile: bool | str, passes: int) -> bool:
    """Whether compiling was not tried, and training is long enough for it to pay."""
    if compile != "auto" or any(name.endswith(_COMPILED) for name in choice.seconds):
        return False
    return choice.seconds[choice.precision] * passes > _COMPILE_IF_LONGER_THAN_SECONDS


def _pass(model: BaseModel, loss: Callable[[], torch.Tensor], precision: str) -> Callable[[], None]:
    def forward_and_backward() -> None:
        with matmul_precision(precision):
            with autocast(precision, model.device):
                value = loss()
            value.backward()  # type: ignore[no-untyped-call]
        model.zero_grad(set_to_none=True)
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)

    return forward_and_backward


@contextmanager
def _unchanged(model: BaseModel) -> Iterator[None]:
    rng = get_rng_state()
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]  # such as running means
    try:
        yield
    finally:
        set_rng_state(*rng)
        for buffer, value in buffers:
            buffer.copy_(value)
        model.zero_grad(set_to_none=True)


def _time_all(passes: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Time each candidate: the minimum over alternating rounds, since other load only adds time.

    Not every model supports every precision; the first candidate must work.
    """
    best: dict[str, float] = {}
    for name, run in passes.items():
        try:
            run()  # the first run allocates and compiles
            best[name] = float("inf")
        except RuntimeError as error:
            if not best:
                raise
            log.info(f"{name} is not possible here: {str(error).splitlines()[0]}")
    for _ in range(_ROUNDS):
        for name in best:
            started = time.perf_counter()
            passes[name]()
            best[name] = min(best[name], time.perf_counter() - started)
    return best


def _key(model: BaseModel, batch: Batch, precision: str, compile: bool | str) -> str:
    device = model.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    facts = {
        "machine": [platform.node(), platform.machine(), name, os.cpu_count()],
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "model": [
            type(model).__qualname__,
            getattr(model, "vocab_size", None),
            repr(model.arguments),
            *([model.lora] if model.lora else []),
        ],
        "batch": {name: list(tensor.shape) for name, tensor in batch.items()},
        "asked": [precision, compile],
    }
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _describe(choice: Choice, when: str) -> str:
    figures = ", ".join(f"{name} {1000 * s:.1f} ms" for name, s in choice.seconds.items())
    compiled = _COMPILED if choice.compile else ""
    per_pass = f", per pass: {figures}" if figures else ""
    return f"computing in {choice.precision}{compiled} ({when}{per_pass})"
