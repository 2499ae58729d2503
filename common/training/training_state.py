"""Everything that a training is between two steps: into a checkpoint, and back.

The place in the data needs no state of its own: batches are a function of the step. A step that was
cut off inside of its accumulation begins again with its first batch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from common.errors import CheckpointError
from common.experiments.conditions import diff_configs
from common.models.checkpoint import Checkpoint, fill_model, weights_of
from common.training.callbacks.base import Callback
from common.training.distributed import DistributedContext
from common.training.optimizer_state import pack_optimizer, unpack_optimizer, with_prefix
from common.training.precision import supported_precisions
from common.utils.logging import get_logger
from common.utils.manifest import cpu_name
from common.utils.seeding import get_rng_state, seed_everything, set_rng_state

if TYPE_CHECKING:
    from common.training.trainer import Trainer

log = get_logger("training")
Tensors = dict[str, torch.Tensor]


def pack_state(trainer: Trainer) -> tuple[dict[str, Any], Tensors, Tensors]:
    """(values that JSON can hold, the weights to use, every other tensor)."""
    context = trainer.context
    groups, tensors = pack_optimizer(trainer.optimizer)
    values, random_states = get_rng_state()
    state = {
        "step": trainer.step,
        "tokens": trainer.tokens,
        "best_loss": trainer.best_loss,
        "best_step": trainer.best_step,
        "window": {**trainer.window, "nats": context.gather(trainer.nats.item())},
        "log_rows": trainer.run.rows if trainer.run else 0,
        "fingerprint": trainer.fingerprint,
        "training": numerics(trainer),
        "param_groups": groups,
        "rng": context.gather(values),
        "scaler": trainer.scaler.state() if trainer.scaler else None,
        "callbacks": {key: callback.state() for key, callback in _keyed(trainer.callbacks)},
    }
    for rank, states in enumerate(context.gather(random_states)):
        tensors |= {f"rng.{rank}.{name}": tensor for name, tensor in states.items()}
    for key, callback in _keyed(trainer.callbacks):
        tensors |= {f"callback.{key}.{name}": held for name, held in callback.tensors().items()}
    weights = weights_of(trainer.model)
    if trainer.average is not None:
        # The weights that are judged are those that are kept; training goes on from the others.
        tensors |= {f"trained.{name}": weights[name] for name in trainer.average.weights}
        weights |= trainer.average.weights
    return state, weights, tensors


def unpack_state(trainer: Trainer, saved: Checkpoint, anyway: bool) -> None:
    """Make the trainer what it was when `saved` was packed.

    Raises CheckpointError when it was trained on other data (`anyway`: says so and goes on), or
    does not fit the model.
    """
    state, tensors = saved.state, saved.tensors
    _check_fingerprint(trainer, saved, anyway)
    _take_numerics(trainer, state["training"])
    fill_model(trainer.model, saved)
    trained = with_prefix(tensors, "trained.")
    if trainer.average is not None:
        trainer.average.load(trained)
    elif trained:  # they were averaged until now, and are no longer
        trainer.model.load_state_dict(trained, strict=False)
    unpack_optimizer(trainer.optimizer, state["param_groups"], tensors)
    if trainer.scaler and state["scaler"]:
        trainer.scaler.load_state(state["scaler"])
    _set_random_states(trainer, state, tensors)
    trainer.step = trainer.saved_step = state["step"]
    trainer.tokens = state["tokens"]
    trainer.best_loss, trainer.best_step = state["best_loss"], state["best_step"]
    trainer.window = state["window"]
    trainer.nats.fill_(_own_nats(trainer.window.pop("nats"), trainer.context))
    for key, callback in _keyed(trainer.callbacks):
        if key in state["callbacks"]:
            callback.load_state(state["callbacks"][key])
            callback.load_tensors(with_prefix(tensors, f"callback.{key}."))


def _own_nats(saved: list[float] | float, context: DistributedContext) -> float:
    """What this process has added up since the last log, or the main one what other processes had."""
    parts = saved if isinstance(saved, list) else [saved]  # earlier versions saved the sum
    if len(parts) == context.world_size:
        return parts[context.rank]
    return sum(parts) if context.is_main else 0.0


def _set_random_states(trainer: Trainer, state: Mapping[str, Any], tensors: Tensors) -> None:
    rank = trainer.context.rank
    if len(state["rng"]) == trainer.context.world_size:
        states = with_prefix(tensors, f"rng.{rank}.")
        set_rng_state(state["rng"][rank], {name: s.cpu() for name, s in states.items()})
    else:  # other processes have other rows: there is nothing to continue
        seed_everything(torch.initial_seed() + state["step"])


def _check_fingerprint(trainer: Trainer, saved: Checkpoint, anyway: bool) -> None:
    then, now = saved.state["fingerprint"], trainer.fingerprint
    # Earlier versions recorded no text of data.more_validation; the order of their batches counts.
    now = {key: value for key, value in now.items() if key in then or not key.startswith("text ")}
    different = diff_configs([then, now])
    if not different:
        return
    changes = "; ".join(f"{key}: {was} -> {now}" for key, (was, now) in different.items())
    if not anyway:
        raise CheckpointError(
            f"{saved.path} was trained on other data than data.* gives now ({changes})",
            "restore the text it was prepared from, start a new experiment, or --resume-anyway",
        )
    log.warning(f"resuming on other data: {changes}")
    trainer.changes |= {f"data {key}": values for key, values in different.items()}


def numerics(trainer: Trainer) -> dict[str, Any]:
    """What decides the bits of a step besides configuration and data."""
    return {
        "precision": trainer.precision,
        "compiled": trainer.compiled,
        "processes": trainer.context.world_size,
        "device": trainer.device.type,
        "cpu": cpu_name(),
        "threads": torch.get_num_threads() if trainer.device.type == "cpu" else None,
        "torch": torch.__version__,
    }


def _take_numerics(trainer: Trainer, saved: Mapping[str, Any]) -> None:
    """Go on computing as before, whatever `auto` would choose now; say what cannot be the same."""
    possible = saved["precision"] in supported_precisions(trainer.device)
    if trainer.config.precision == "auto" and possible:
        trainer.precision = trainer.evaluator.precision = saved["precision"]
    if trainer.config.compile == "auto":
        trainer.compiled = saved["compiled"]
        trainer.model.set_compile(trainer.compiled)
    _take_threads(trainer, saved)
    # Whose precision follows.
    trainer.optimizer, trainer.scaler = trainer.create_optimizer(), trainer.create_scaler()
    for name, now in numerics(trainer).items():
        if now != saved.get(name, now):  # not recorded by earlier versions
            log.warning(
                f"{name} was {saved[name]} and is {now}: "
                "the results will be close, but not the same bits"
            )


def _take_threads(trainer: Trainer, saved: Mapping[str, Any]) -> None:
    """Set the saved number of CPU threads, unless the user gives one or the CPU is another one."""
    if trainer.config.num_threads is not None or "OMP_NUM_THREADS" in os.environ:
        return
    now, threads = numerics(trainer), saved.get("threads")
    if threads and now["threads"] not in (None, threads) and now["cpu"] == saved.get("cpu"):
        torch.set_num_threads(threads)
        log.info(f"using {threads} CPU threads as before; change it with training.num_threads")


def _keyed(callbacks: list[Callback]) -> list[tuple[str, Callback]]:
    """`Samples.0`, `EarlyStopping.0`: the class, and which one of that class."""
    names = [type(callback).__name__ for callback in callbacks]
    keys = [f"{name}.{names[:index].count(name)}" for index, name in enumerate(names)]
    return list(zip(keys, callbacks, strict=True))
