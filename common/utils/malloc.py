"""Keep freed memory in glibc's malloc, which returns large blocks to the kernel and faults them in again.

A training step frees and allocates the same hundreds of megabytes every time. Measured on 2 CPU
cores: 28,000 to 57,000 page faults per step, and 15 to 20% less time without them for a GPT-2 of
10.6M or 30M.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h
_MIB = 2**20
_NEVER = -1
_TOP_PAD = 128 * 1024  # malloc's default
# Maximum of malloc's dynamic threshold: larger blocks always come from the kernel, because in the
# heap they would leave holes.
_MMAP_THRESHOLD = 32 * _MIB


def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "gnu_get_libc_version") else None


@contextmanager
def freed_memory_returned() -> Iterator[None]:
    """Return freed blocks of 2 MiB and more to the kernel, for trainings that are short of memory.

    Aligned blocks leave holes in the heap that blocks of the same size do not fit (glibc 2.36). LoRA on a model of
    160M parameters (fp32, activation checkpointing) peaks at 820 MiB instead of 1,210, and a step takes 10% more CPU time.
    """
    libc = _glibc()
    if libc is not None:
        libc.mallopt(_M_MMAP_THRESHOLD, 2 * _MIB)
    try:
        yield
    finally:
        if libc is not None:
            libc.mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD)


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Keep freed blocks below 32 MiB for later allocations.

    Does nothing without glibc.
    """
    libc = _glibc()
    if libc is None:
        yield
        return
    libc.mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD)
    libc.mallopt(_M_TOP_PAD, 64 * _MIB)
    libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)
    try:
        yield
    finally:
        libc.mallopt(_M_TOP_PAD, _TOP_PAD)
        libc.mallopt(_M_TRIM_THRESHOLD, 2 * _MMAP_THRESHOLD)  # malloc's own ratio
        libc.malloc_trim(0)
