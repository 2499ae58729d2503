"""One seed for everything random, and the state of every generator for an exact resume."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and PyTorch's (every device's) global generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def derive_seed(*parts: int) -> int:
    """A seed of 63 bits for each combination of whole numbers, unrelated to those of its neighbours."""
    entropy = [part % 2**64 for part in parts]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))


def get_rng_state() -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """(values that JSON can hold, tensors) that `set_rng_state` takes back."""
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
    """Restore what `get_rng_state` returned; states of devices that are absent here are left out."""
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
