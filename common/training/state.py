"""The state of a training between two steps, saved in checkpoints.

The position in the data needs no state: batches are a function of the step. A step that was
interrupted during gradient accumulation starts over with its first batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from common.models.base import BaseModel
from common.models.checkpoint import Checkpoint, fill_model, weights_of
from common.training.callbacks.base import Callback
from common.training.distributed import DistributedContext
from common.training.ema import WeightAverage
from common.training.optimizer_state import pack_optimizer, unpack_optimizer, with_prefix
from common.training.precision import LossScaler
from common.utils.seeding import get_rng_state, seed_everything, set_rng_state

Tensors = dict[str, torch.Tensor]


@dataclass
class Window:
    """Sums since the last logged row.

    Attributes:
        nats: this process's part of the loss, a scalar on the device, so that no step waits for it.
        targets, units, seconds: over all processes.
    """

    nats: torch.Tensor
    targets: int = 0
    units: int = 0
    seconds: float = 0.0

    def state(self, context: DistributedContext) -> dict[str, Any]:
        """JSON values; `nats` of every process."""
        counts = {"labels": self.targets, "tokens": self.units, "seconds": self.seconds}
        return {**counts, "nats": context.gather(self.nats.item())}

    def load_state(self, state: Mapping[str, Any], context: DistributedContext) -> None:
        """Restore what `state` returned, also with another number of processes."""
        self.targets, self.units = state["labels"], state["tokens"]
        self.seconds = state["seconds"]
        parts = state["nats"] if isinstance(state["nats"], list) else [state["nats"]]
        if len(parts) == context.world_size:
            self.nats.fill_(parts[context.rank])
        else:  # another number of processes: the sum on rank 0
            self.nats.fill_(sum(parts) if context.is_main else 0.0)


@dataclass
class TrainState:
    """The parts of a training that change with every step.

    Attributes:
        step: optimizer steps so far.
        units: units of the objective (tokens, images) read so far.
        best_loss, best_step: the lowest validation loss (nats), and its checkpoint.
    """

    model: BaseModel
    optimizer: torch.optim.Optimizer
    average: WeightAverage | None
    scaler: LossScaler | None
    callbacks: Sequence[Callback]
    context: DistributedContext
    window: Window
    step: int = 0
    units: int = 0
    best_loss: float = math.inf
    best_step: int | None = None

    def state(self) -> tuple[dict[str, Any], Tensors, Tensors]:
        """Return (JSON values, the weights to use, all other tensors)."""
        groups, tensors = pack_optimizer(self.optimizer)
        values, random_states = get_rng_state()
        state = {
            "step": self.step,
            "tokens": self.units,
            "best_loss": self.best_loss,
            "best_step": self.best_step,
            "window": self.window.state(self.context),
            "param_groups": groups,
            "rng": self.context.gather(values),
            "scaler": self.scaler.state() if self.scaler else None,
            "callbacks": {key: callback.state() for key, callback in self._keyed_callbacks()},
        }
        for rank, states in enumerate(self.context.gather(random_states)):
            tensors |= {f"rng.{rank}.{name}": tensor for name, tensor in states.items()}
        for key, callback in self._keyed_callbacks():
            tensors |= {f"callback.{key}.{name}": held for name, held in callback.tensors().items()}
        weights = weights_of(self.model)
        if self.average is not None:
            # Averaged weights are for evaluation; training continues from the others.
            tensors |= {f"trained.{name}": weights[name] for name in self.average.weights}
            weights |= self.average.weights
        return state, weights, tensors

    def load_state(self, saved: Checkpoint) -> None:
        """Restore `saved`. Raises CheckpointError if it does not fit the model or the optimizer."""
        state, tensors = saved.state, saved.tensors
        fill_model(self.model, saved)
        trained = with_prefix(tensors, "trained.")
        if self.average is not None:
            self.average.load(trained)
        elif trained:  # no longer averaged
            self.model.load_state_dict(trained, strict=False)
        unpack_optimizer(self.optimizer, state["param_groups"], tensors)
        if self.scaler and state["scaler"]:
            self.scaler.load_state(state["scaler"])
        self._load_random_states(state, tensors)
        self.step, self.units = state["step"], state["tokens"]
        self.best_loss, self.best_step = state["best_loss"], state["best_step"]
        self.window.load_state(state["window"], self.context)
        for key, callback in self._keyed_callbacks():
            if key in state["callbacks"]:
                callback.load_state(state["callbacks"][key])
                callback.load_tensors(with_prefix(tensors, f"callback.{key}."))

    def _load_random_states(self, state: Mapping[str, Any], tensors: Tensors) -> None:
        rank = self.context.rank
        if len(state["rng"]) == self.context.world_size:
            states = with_prefix(tensors, f"rng.{rank}.")
            set_rng_state(state["rng"][rank], {name: s.cpu() for name, s in states.items()})
        else:  # other processes have other rows
            seed_everything(torch.initial_seed() + state["step"])

    def _keyed_callbacks(self) -> list[tuple[str, Callback]]:
        """`Samples.0`, `EarlyStopping.0`: the class, and the index within it."""
        names = [type(callback).__name__ for callback in self.callbacks]
        keys = [f"{name}.{names[:index].count(name)}" for index, name in enumerate(names)]
        return list(zip(keys, self.callbacks, strict=True))
