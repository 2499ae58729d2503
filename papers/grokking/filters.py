"""Gradient filters between the backward pass and the optimizer.

`EMAFilter` and `MAFilter`: Lee et al. 2024, "Grokfast: Accelerated Grokking by Amplifying Slow
Gradients". `OrthogonalFilter`: Prieto et al. 2025, "Grokking at the Edge of Numerical Stability".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from common.errors import TrainingError
from common.training import Callback

if TYPE_CHECKING:
    from common.training import Trainer


class GradientFilter(Callback):
    """g + strength * slow(g) + weight_decay * w: the slow part is amplified, then Adam's L2 is added.

    The decay is Adam's L2, as in the paper's code: it is divided by the root of the second moment,
    unlike AdamW's in the Trainer.
    """

    def __init__(self, strength: float = 0.0, weight_decay: float = 0.0) -> None:
        self.strength, self.weight_decay = strength, weight_decay

    def on_train_start(self, trainer: Trainer) -> None:
        if trainer.scaler is not None or trainer.context.world_size > 1:
            raise TrainingError(
                "gradient filters need a single process without loss scaling",
                "train in one process, in fp32 or bf16",
            )

    def on_gradients(self, trainer: Trainer) -> None:
        parameters = [p for p in trainer.optimizer.parameters() if p.grad is not None]
        self.change([p.detach() for p in parameters], [p.grad for p in parameters])  # type: ignore[misc]

    @torch.no_grad()
    def change(self, weights: list[torch.Tensor], gradients: list[torch.Tensor]) -> None:
        """Change `gradients` in place; the same tensors in the same order at every step."""
        slow = self.slow(gradients) if self.strength else None
        if slow is not None:
            torch._foreach_add_(gradients, slow, alpha=self.strength)
        if self.weight_decay:
            torch._foreach_add_(gradients, weights, alpha=self.weight_decay)

    def slow(self, gradients: list[torch.Tensor]) -> list[torch.Tensor] | None:
        """Return the slow part, or None if there is none yet."""
        return None


class EMAFilter(GradientFilter):
    """The slow part is an exponential moving average, m = decay * m + (1 - decay) * g, from the first g on."""

    def __init__(self, strength: float, weight_decay: float, decay: float) -> None:
        super().__init__(strength, weight_decay)
        self.decay = decay
        self._means: list[torch.Tensor] = []

    def slow(self, gradients: list[torch.Tensor]) -> list[torch.Tensor]:
        if not self._means:
            self._means = [gradient.clone() for gradient in gradients]
        else:
            torch._foreach_lerp_(self._means, gradients, 1 - self.decay)
        return self._means

    def tensors(self) -> dict[str, torch.Tensor]:
        return {str(index): mean for index, mean in enumerate(self._means)}

    def load_tensors(self, tensors: dict[str, torch.Tensor]) -> None:
        self._means = [tensors[str(index)] for index in range(len(tensors))]


class MAFilter(GradientFilter):
    """The slow part is the mean of the last `window` gradients; none before that many steps."""

    def __init__(self, strength: float, weight_decay: float, window: int) -> None:
        super().__init__(strength, weight_decay)
        self.window = window
        self.seen = 0
        self._last = self._sum = torch.empty(0)  # (window, all gradients) and its sum

    def slow(self, gradients: list[torch.Tensor]) -> list[torch.Tensor] | None:
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        if not self.seen:
            self._last, self._sum = flat.new_zeros(self.window, len(flat)), torch.zeros_like(flat)
        place = self.seen % self.window
        self._sum += flat - self._last[place]
        self._last[place] = flat
        self.seen += 1
        if place == self.window - 1:
            self._sum = self._last.sum(dim=0)  # avoids accumulating rounding errors
        if self.seen < self.window:
            return None
        parts = (self._sum / self.window).split([gradient.numel() for gradient in gradients])
        return [part.view_as(gradient) for part, gradient in zip(parts, gradients, strict=True)]

    def state(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"last": self._last, "sum": self._sum}

    def load_tensors(self, tensors: dict[str, torch.Tensor]) -> None:
        self._last, self._sum = tensors["last"], tensors["sum"]


class OrthogonalFilter(GradientFilter):
    """g - (w.g / w.w) w for each parameter tensor, scaled back to the length of g (section 5.1).

    The part along the weights scales them up, which lowers the loss without changing predictions
    once the training set is fitted. (Adam scales each element separately, so its step is not
    exactly orthogonal to the weights.)
    """

    @torch.no_grad()
    def change(self, weights: list[torch.Tensor], gradients: list[torch.Tensor]) -> None:
        for weight, gradient in zip(weights, gradients, strict=True):
            along = (weight * gradient).sum() / weight.square().sum().clamp(min=1e-30)
            orthogonal = gradient - along * weight
            gradient.copy_(orthogonal * (gradient.norm() / orthogonal.norm().clamp(min=1e-30)))
