"""A Trainer in one call, for tests of what it does."""

from __future__ import annotations

from typing import Any

from common.training import Experiment, NextToken, Trainer, TrainingConfig

_OF_THE_TRAINER = ("optimizer", "schedule", "run", "context", "share_auto")


def make_trainer(
    model: Any, train_data: Any, config: TrainingConfig | None = None, **options: Any
) -> Trainer:
    """`options` are those of Experiment, those of Trainer, and `token_bytes` of NextToken."""
    own = {name: options.pop(name) for name in _OF_THE_TRAINER if name in options}
    objective = NextToken(model.vocab_size, options.pop("token_bytes", None))
    experiment = Experiment(model, train_data, objective=objective, **options)
    return Trainer(experiment, config, **own)
