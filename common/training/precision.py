"""Select device and precision; an unavailable one is an error, never a fallback.

fp32   IEEE single precision
tf32   fp32 with TF32 matrix products on tensor cores (NVIDIA Ampere and later)
bf32   fp32 with oneDNN's products on CPU: of bf16 where the CPU has AMX, of fp32 elsewhere, and
       even then twice as fast as the default on AMD
bf16   autocast: matrix products and activations in bfloat16, weights and sums in fp32
fp16   autocast in half precision with dynamic loss scaling, for cards without bf16; on CPU to try
       a configuration out, not for speed
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from common.errors import TrainingError

_MATMUL_PRECISION = {"tf32": "high", "bf32": "medium"}


def select_device(name: str) -> torch.device:
    """Select a device; `auto` is CUDA, else MPS, else CPU. Raises TrainingError if it is not available."""
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


def supported_precisions(device: torch.device) -> list[str]:
    """Precisions that this device supports, plain fp32 first."""
    if device.type == "cpu":
        onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        return ["fp32", *(["bf32"] if onednn else []), "bf16", "fp16"]
    if device.type == "cuda":
        ampere = torch.cuda.get_device_capability(device) >= (8, 0)
        return ["fp32", *(["tf32", "bf16"] if ampere else []), "fp16"]
    return ["fp32", "bf16"]


def check_precision(name: str, device: torch.device) -> None:
    """Raise TrainingError for a precision that `device` does not support."""
    supported = supported_precisions(device)
    if name not in ("auto", *supported):
        raise TrainingError(
            f"{device.type} does not support {name}",
            f"set training.precision to {', '.join(supported)}",
        )


def fastest_fp32(device: torch.device) -> str:
    """fp32, or bf32 if its products are exact fp32 too, tested on one product.

    On AMD bf32 takes half the time, except for matrices so small that 20 microseconds a product
    matter.
    """
    if "bf32" not in supported_precisions(device):
        return "fp32"
    x = torch.full((64, 64), 1 + 2.0**-12)  # rounds to 1 in bf16
    with matmul_precision("bf32"):
        exact = torch.allclose(x @ x, (x.double() @ x.double()).float())
    return "bf32" if exact else "fp32"


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Context manager for forward passes."""
    if precision in ("bf16", "fp16"):
        dtype = torch.bfloat16 if precision == "bf16" else torch.float16
        return torch.autocast(device.type, dtype=dtype)
    return nullcontext()


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Context manager for all matrix products, backward passes included."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(_MATMUL_PRECISION.get(precision, "highest"))
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class LossScaler:
    """Dynamic loss scaling (Micikevicius et al. 2018, "Mixed Precision Training", section 3.2).

    Gradients below 6e-8 are zero in fp16: the loss is multiplied by `scale`, which is halved when a
    gradient overflows and doubled after `growth_steps` steps without overflow. An overflow is
    normal: the step is skipped. An overflow at `min_scale` means that training has diverged (as in
    fairseq). Nothing waits for the device.
    """

    min_scale = 2.0**-14
    max_scale = 2.0**100  # far from infinity, which halving cannot leave

    def __init__(
        self, device: torch.device, initial_scale: float = 65536.0, growth_steps: int = 2000
    ) -> None:
        self.growth_steps = growth_steps
        self.scale = torch.tensor(initial_scale, device=device)
        self.good_steps = torch.zeros((), device=device)

    def update(self, overflow: torch.Tensor) -> torch.Tensor:
        """Update the scale after a step; return a scalar, 1 if training has diverged, else 0.

        `overflow`: scalar, 1 if the gradients of this step were not finite, else 0.
        """
        diverged = overflow * (self.scale <= self.min_scale)
        good = (self.good_steps + 1) * (1 - overflow)
        grow = good >= self.growth_steps
        factor = torch.where(overflow > 0, 0.5, torch.where(grow, 2.0, 1.0))
        self.scale = (self.scale * factor).clamp(self.min_scale, self.max_scale)
        self.good_steps = torch.where(grow, torch.zeros_like(good), good)
        return diverged

    def state(self) -> dict[str, float]:
        """JSON values."""
        return {"scale": float(self.scale), "good_steps": float(self.good_steps)}

    def load_state(self, state: dict[str, float]) -> None:
        """Restore what `state` returned."""
        self.scale.fill_(state["scale"])
        self.good_steps.fill_(state["good_steps"])
