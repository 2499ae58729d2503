"""Model FLOPs utilisation and memory, in every logged row of the training split."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import psutil
import torch

from common.models.base import BaseLanguageModel
from common.training.callbacks.base import Callback
from common.training.mfu import model_flops_per_token, peak_flops

if TYPE_CHECKING:
    from common.training.trainer import Trainer

_GIB = 2**30


class Efficiency(Callback):
    """Logs `mfu` (0 to 1; only for known models and devices, see mfu.py) and memory.

    Memory is logged under the names of utils/system_metrics.py: `gpu_memory_gib`, the peak
    allocation on a CUDA device, or `memory_gib`, the current memory of the process, elsewhere.

    Args:
        context_length: tokens per training sequence.
    """

    def __init__(self, context_length: int) -> None:
        self.context_length = context_length
        self._process = psutil.Process()

    def on_train_start(self, trainer: Trainer) -> None:
        self._flops_per_token: float | None = None
        if isinstance(trainer.model, BaseLanguageModel):
            self._flops_per_token = model_flops_per_token(trainer.model, self.context_length)
        peak = peak_flops(trainer.device, trainer.precision)
        self._peak_flops = peak and peak * trainer.context.world_size

    def measure(self, trainer: Trainer, metrics: Mapping[str, float]) -> dict[str, float]:
        found: dict[str, float] = {}
        if self._flops_per_token and self._peak_flops:
            flops = metrics["tokens_per_second"] * self._flops_per_token
            found["mfu"] = flops / self._peak_flops
        if trainer.device.type == "cuda":
            found["gpu_memory_gib"] = torch.cuda.max_memory_allocated(trainer.device) / _GIB
        else:
            found["memory_gib"] = self._process.memory_info().rss / _GIB
        return found
