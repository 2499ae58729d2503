"""System metrics of a run: processor, memory and accelerator."""

from __future__ import annotations

import sys
import time
from contextlib import suppress

import psutil

SYSTEM_METRICS = ("cpu_percent", "memory_gib", "gpu_memory_gib", "gpu_percent")
_GIB = 2**30


class SystemMetrics:
    """Measures this process at most once every `every_seconds`, first after that time."""

    def __init__(self, every_seconds: float) -> None:
        self._every_seconds = every_seconds
        self._measured = time.monotonic()
        self._process = psutil.Process()
        self._process.cpu_percent()  # the first call begins the interval

    def sample(self) -> dict[str, float]:
        """Return {} if it is too early. Else `cpu_percent` since the last sample (100 is one busy
        core), `memory_gib` (resident), and for PyTorch's accelerator `gpu_memory_gib` (allocated;
        the peak on CUDA) and, with NVIDIA's library, `gpu_percent`."""
        now = time.monotonic()
        if now - self._measured < self._every_seconds:
            return {}
        self._measured = now
        with self._process.oneshot():
            found = {
                "cpu_percent": self._process.cpu_percent(),
                "memory_gib": self._process.memory_info().rss / _GIB,
            }
        return found | _accelerator()


def _accelerator() -> dict[str, float]:
    torch = sys.modules.get("torch")  # already imported if an accelerator is used
    if torch is None:
        return {}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        found = {"gpu_memory_gib": torch.cuda.max_memory_allocated() / _GIB}
        with suppress(ModuleNotFoundError):  # no value without nvidia-ml-py
            found["gpu_percent"] = float(torch.cuda.utilization())
        return found
    if torch.backends.mps.is_available():
        return {"gpu_memory_gib": torch.mps.current_allocated_memory() / _GIB}
    return {}
