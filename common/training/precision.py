"""Which device to compute on and in which precision; what is not there is an error, never a fallback."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from common.errors import TrainingError


def select_device(name: str) -> torch.device:
    """`auto` is CUDA, else MPS, else CPU. Raises TrainingError for a device that is not there."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # PyTorch built without CUDA asserts
        reason = str(error).splitlines()[0]
        raise TrainingError(
            f"device '{name}' cannot be used: {reason}", "set training.device=auto or cpu"
        ) from error
    return device


def select_precision(name: str, device: torch.device) -> str:
    """`auto` is bf16 on CUDA cards that have it, fp32 elsewhere (on CPUs eager bf16 is slower)."""
    has_bf16 = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    if name == "auto":
        return "bf16" if device.type == "cuda" and has_bf16 else "fp32"
    if name == "bf16" and not has_bf16:
        raise TrainingError(f"{device} has no bf16", "set training.precision=fp32")
    return name


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """The context in which forward passes run."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)
