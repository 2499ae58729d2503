"""`on_gradients` and `tensors`: what a callback changes is trained on, and a resume goes on exactly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from common.training import Callback, Trainer, TrainingConfig
from common.training.config import OptimizerConfig, ScheduleConfig
from common.utils import start_experiment
from tests.tiny_training import Batches, same_weights, tiny_model, train
from tests.trainers import make_trainer


class Momentum(Callback):
    """Adds half of what was added up so far to each gradient; one tensor for all, and a JSON count."""

    def __init__(self) -> None:
        self.sum = torch.empty(0)
        self.count = 0

    def on_gradients(self, trainer: Trainer) -> None:
        gradients = [p.grad for p in trainer.optimizer.parameters() if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        self.sum = flat + 0.5 * self.sum if self.count else flat
        self.count += 1
        parts = self.sum.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def state(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state(self, state: dict[str, Any]) -> None:
        self.count = state["count"]

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"sum": self.sum}

    def load_tensors(self, tensors: dict[str, torch.Tensor]) -> None:
        self.sum = tensors["sum"]


class Kill(Callback):
    def on_step(self, trainer: Trainer) -> None:
        if trainer.step == 5:
            raise RuntimeError("killed")


def test_changed_gradients_are_trained_on_and_a_resume_takes_up_their_state() -> None:
    assert not same_weights(train(), train(Momentum()))
    with start_experiment("whole") as run:
        whole = train(Momentum(), run=run)
    with pytest.raises(RuntimeError, match="killed"), start_experiment("cut") as run:
        train(Momentum(), Kill(), run=run)
    resumed = Momentum()
    with start_experiment("cut", resume=True) as run:
        cut = train(resumed, run=run, resume=True)
    assert resumed.count == 6
    assert same_weights(whole, cut)


def test_two_callbacks_of_one_class_keep_their_own_tensors() -> None:
    with pytest.raises(RuntimeError, match="killed"), start_experiment("cut") as run:
        train(Momentum(), Momentum(), Kill(), run=run)
    one, other = Momentum(), Momentum()
    with start_experiment("cut", resume=True) as run:
        train(one, other, run=run, resume=True, steps=4)  # where it was saved: nothing is trained
    assert one.sum.shape == other.sum.shape
    assert not torch.equal(one.sum, other.sum)


class Constant(Callback):
    """Replaces every gradient by 1, as seen by a clipping to the norm 1e-3."""

    def __init__(self) -> None:
        self.norms: list[float] = []

    def on_gradients(self, trainer: Trainer) -> None:
        for parameter in trainer.optimizer.parameters():
            if parameter.grad is not None:
                parameter.grad.fill_(1.0)

    def on_log(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        self.norms.append(metrics["gradient_norm"])


def test_the_hook_comes_after_accumulation_and_before_the_norm() -> None:
    seen, constant = [], Constant()

    class Count(Callback):
        def on_gradients(self, trainer: Trainer) -> None:
            seen.append(trainer.step)

    model = tiny_model()
    make_trainer(
        model,
        Batches(),
        TrainingConfig(
            max_steps=3,
            gradient_accumulation_steps=2,
            log_every_steps=1,
            device="cpu",
            max_grad_norm=1e-3,
        ),
        optimizer=OptimizerConfig(),
        schedule=ScheduleConfig(),
        callbacks=[Count(), constant],
    ).fit()
    assert seen == [0, 1, 2]
    assert constant.norms == pytest.approx([model.num_parameters() ** 0.5] * 3, rel=1e-6)
