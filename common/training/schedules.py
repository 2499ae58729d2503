"""The learning rate as a pure function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math

from common.training.config import ScheduleConfig


def learning_rate(step: int, peak: float, max_steps: int, config: ScheduleConfig) -> float:
    """The rate of optimizer step `step` (0 is the first).

    Linear warm-up over `warmup_steps` (step 0 takes 1/warmup of the peak), then `constant`, `linear`,
    or `cosine` (Loshchilov and Hutter 2017, "SGDR", eq. 5, one period) down to `min_lr_ratio` x peak
    at the last step.
    """
    if step < config.warmup_steps:
        return peak * (step + 1) / config.warmup_steps
    if config.name == "constant":
        return peak
    progress = (step - config.warmup_steps) / max(1, max_steps - 1 - config.warmup_steps)
    progress = min(progress, 1.0)
    left = 1 - progress if config.name == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return peak * (config.min_lr_ratio + (1 - config.min_lr_ratio) * left)
