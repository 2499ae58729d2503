"""Which library multiplies fp32 matrices on the CPU, and whether it stays in fp32.

PyTorch uses MKL, which leaves half of an AMD CPU unused (measured on Zen 5: 175 GFLOP/s, oneDNN 400).
It takes oneDNN's products where "medium" precision is asked for: of bf16 on CPUs with AMX, which AMD's
have not, and of fp32 on others.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


@contextmanager
def float32_matmul_precision(precision: str) -> Iterator[None]:
    """torch.set_float32_matmul_precision ("highest", "high" or "medium") for this context."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def fp32_matmul(device: torch.device) -> Iterator[None]:
    """Products of fp32 in fp32, by the faster library."""
    onednn = device.type == "cpu" and _is_amd() and not is_medium_reduced()
    with float32_matmul_precision("medium" if onednn else "highest"):
        yield


@functools.cache
def is_medium_reduced() -> bool:
    """Whether fp32 products in "medium" precision lose digits on this CPU, tried on one of them."""
    x = torch.full((64, 64), 1 + 2.0**-12)  # 1 in bf16 and in TF32
    with float32_matmul_precision("medium"):
        return not torch.allclose(x @ x, (x.double() @ x.double()).float())


@functools.cache
def _is_amd() -> bool:
    try:
        facts = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # Windows tells it in the name
        facts = platform.processor()
    return "AuthenticAMD" in facts
