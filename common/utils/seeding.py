"""Seeding of all random number generators, and their states for an exact resume."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and PyTorch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def derive_seed(*parts: int) -> int:
    """Derive a 63-bit seed from integers; nearby inputs give unrelated seeds."""
    entropy = [part % 2**64 for part in parts]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))


def get_rng_state() -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return (JSON values, tensors) for `set_rng_state`."""
    name, keys, position, has_gauss, cached_gauss = np.random.get_state(legacy=True)
    version, internal, gauss_next = random.getstate()
    values = {
        "python": [version, list(internal), gauss_next],
        "numpy": [name, [int(k) for k in keys], position, has_gauss, cached_gauss],
    }
    tensors = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        for index, state in enumerate(torch.cuda.get_rng_state_all()):
            tensors[f"cuda.{index}"] = state
    if torch.backends.mps.is_available():
        tensors["mps"] = torch.mps.get_rng_state()
    return values, tensors


def set_rng_state(values: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """Restore what `get_rng_state` returned; states of missing devices are ignored."""
    version, internal, gauss_next = values["python"]
    random.setstate((version, tuple(internal), gauss_next))
    name, keys, position, has_gauss, cached_gauss = values["numpy"]
    np.random.set_state((name, np.array(keys, np.uint32), position, has_gauss, cached_gauss))
    torch.set_rng_state(tensors["torch"])
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            if (state := tensors.get(f"cuda.{index}")) is not None:
                torch.cuda.set_rng_state(state, index)
    if torch.backends.mps.is_available() and "mps" in tensors:
        torch.mps.set_rng_state(tensors["mps"])
