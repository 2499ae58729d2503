"""The learning rate as a pure function of the step, without state."""

from __future__ import annotations

import math

from common.training.config import ScheduleConfig


def learning_rate_factor(step: int, max_steps: int, config: ScheduleConfig) -> float:
    """Factor of the learning rates at optimizer step `step` (from 0).

    Linear warm-up over `warmup_steps` (1/warmup at step 0), then decay to `min_lr_ratio` at the
    last step: `cosine` (Loshchilov and Hutter 2017, "SGDR", eq. 5, one period), `linear`, or `wsd`
    (warmup-stable-decay: Hu et al. 2024, "MiniCPM", section 4), constant until the last
    `decay_fraction` of all steps and linear there. `constant` stays at 1.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.name == "constant":
        return 1.0
    start = config.warmup_steps
    if config.name == "wsd":
        start = max(start, max_steps - 1 - round(config.decay_fraction * max_steps))
    progress = (step - start) / max(1, max_steps - 1 - start)
    progress = min(max(progress, 0.0), 1.0)
    left = (1 + math.cos(math.pi * progress)) / 2 if config.name == "cosine" else 1 - progress
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * left
