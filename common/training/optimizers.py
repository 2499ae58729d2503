"""AdamW and Muon in one optimizer, with one step, one state and one place to scale gradients."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.optim.adamw import adamw

from common.errors import ConfigError, TrainingError, did_you_mean
from common.models.base import BaseModel, default_parameter_roles
from common.training.config import OptimizerConfig
from common.training.sharded import local


class AdamWMuon(torch.optim.Optimizer):
    """AdamW and Muon; each parameter group names its `algorithm`: "adamw" or "muon".

    Gradient clipping and loss scaling are one division, which the fused AdamW kernel does as it
    reads the gradient, without a separate pass over all gradients.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, {})

    # PyTorch's own two methods import its compiler on the first call (1 s, 70 MB).
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self.param_groups.append({"initial_lr": param_group["lr"], **param_group})

    def zero_grad(self, set_to_none: bool = True) -> None:
        for parameter in self.parameters():
            parameter.grad = None

    def parameters(self) -> list[nn.Parameter]:
        """Every parameter of every group."""
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def set_learning_rate_factor(self, factor: float) -> None:
        """Multiply the initial learning rate of every group by `factor`."""
        for group in self.param_groups:
            group["lr"] = group["initial_lr"] * factor

    @torch.no_grad()
    def step(  # type: ignore[override]  # PyTorch's returns the loss of the closure
        self,
        closure: Callable[[], float] | None = None,
        *,
        divisor: torch.Tensor | None = None,
        skip: torch.Tensor | None = None,
    ) -> None:
        """Update every parameter that has a gradient.

        Args:
            divisor: scalar to divide every gradient by.
            skip: scalar, 1 to change nothing (a gradient is not finite), else 0.
        """
        for group in self.param_groups:
            with_gradient = [p for p in group["params"] if p.grad is not None]
            if with_gradient:
                update = _muon if group["algorithm"] == "muon" else _adamw
                update(group, with_gradient, self.state, divisor, skip)


def create_optimizer(
    model: nn.Module, config: OptimizerConfig, muon_dtype: torch.dtype = torch.float32
) -> AdamWMuon:
    """Create AdamW (Loshchilov and Hutter 2019) with weight decay on matrices only, and optionally Muon.

    Biases and norm gains are one-dimensional; decaying them pulls the output to zero without
    limiting capacity. Muon updates the matrices that are neither an embedding nor the output
    projection, by `BaseModel.parameter_roles`; `muon_dtype` is the dtype of its iterations.
    """
    check_optimizer(model, config)
    if isinstance(model, BaseModel):
        roles = model.parameter_roles()
    else:
        roles = default_parameter_roles(model)
    settings = _adamw_settings(config)
    muon: dict[str, Any] = {
        "algorithm": "muon",
        "momentum": config.muon_momentum,
        "weight_decay": config.muon_weight_decay,
        "dtype": str(muon_dtype).removeprefix("torch."),
    }
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if config.name == "muon" and roles[name] == "matrix" and parameter.ndim == 2:
            group = {**muon, "lr": config.muon_lr}
        else:
            decay = 0.0 if roles[name] == "vector" else config.weight_decay
            group = {**settings, "weight_decay": decay, "lr": config.lr}
        group["lr"] *= _factor(name, config.lr_factors)
        key = (group["algorithm"], group["weight_decay"], group["lr"])
        group = groups.setdefault(key, {**group, "params": [], "param_names": []})
        group["params"].append(parameter)
        group["param_names"].append(name)
    return AdamWMuon(list(groups.values()))


def check_optimizer(model: nn.Module, config: OptimizerConfig) -> None:
    """Raise ConfigError for a pattern that matches no parameter of `model` and for Muon with LoRA, and
    TrainingError if no parameter would be trained."""
    if config.name == "muon" and getattr(model, "lora", None):
        # It makes all singular values of an update equal; those of A and B are no ones of the weight.
        raise ConfigError("Muon does not train LoRA adapters", "set optimizer.name=adamw")
    names = [name for name, _ in model.named_parameters()]
    for pattern in config.lr_factors:
        if not any(fnmatchcase(name, pattern) for name in names):
            kinds = dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name) for name in names)
            raise ConfigError(
                f"optimizer.lr_factors: no parameter name matches '{pattern}'",
                did_you_mean(pattern, list(kinds)),
            )
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not trained:
        raise TrainingError(
            f"no parameter of {type(model).__name__} would be trained: all are frozen",
            "set requires_grad_(True) on those to train",
        )
    if not any(_factor(name, config.lr_factors) for name in trained):
        raise TrainingError(
            "optimizer.lr_factors is 0 for every parameter: nothing would be trained",
            "leave out the parameters to train",
        )


def _adamw_settings(config: OptimizerConfig) -> dict[str, Any]:
    return {"algorithm": "adamw", "betas": config.betas, "eps": config.eps}


def _factor(name: str, factors: dict[str, float]) -> float:
    return next((f for pattern, f in factors.items() if fnmatchcase(name, pattern)), 1.0)


def _adamw(
    group: dict[str, Any],
    parameters: list[nn.Parameter],
    states: dict[Any, Any],
    divisor: torch.Tensor | None,
    skip: torch.Tensor | None,
) -> None:
    for parameter in parameters:
        if not states[parameter]:
            states[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
    # AdamW is elementwise: each process updates its shard.
    weights = [local(parameter) for parameter in parameters]
    gradients = [local(p.grad) for p in parameters if p.grad is not None]
    held = [states[parameter] for parameter in parameters]
    if divisor is not None and any(p.dtype == torch.float64 for p in parameters):
        torch._foreach_div_(gradients, divisor)  # the kernel's divisor is fp32
        divisor = None
    adamw(
        weights,
        gradients,
        [local(state["exp_avg"]) for state in held],
        [local(state["exp_avg_sq"]) for state in held],
        [],
        [state["step"] for state in held],
        fused=True,
        grad_scale=None if divisor is None else divisor.float(),
        found_inf=skip,
        amsgrad=False,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )


def _muon(
    group: dict[str, Any],
    parameters: list[nn.Parameter],
    states: dict[Any, Any],
    divisor: torch.Tensor | None,
    skip: torch.Tensor | None,
) -> None:
    """Muon (Jordan et al. 2024) with Nesterov momentum; matrices of one shape are batched."""
    momentum, rate = group["momentum"], group["lr"]
    batches: dict[tuple[int, ...], list[tuple[nn.Parameter, torch.Tensor]]] = defaultdict(list)
    for parameter in parameters:
        gradient = parameter.grad
        assert gradient is not None
        if not states[parameter]:
            states[parameter] = {"momentum_buffer": torch.zeros_like(parameter)}
        buffer = states[parameter]["momentum_buffer"]
        if divisor is not None:
            gradient = gradient / divisor
        if skip is not None:
            gradient = torch.where(skip > 0, buffer, gradient)
        buffer.lerp_(gradient, 1 - momentum)
        update = gradient.lerp(buffer, momentum)
        wide = update if update.shape[0] <= update.shape[1] else update.T
        batches[tuple(wide.shape)].append((parameter, wide))
    for batch in batches.values():
        stacked = torch.stack([update for _, update in batch])
        orthogonal = orthogonalize(stacked, getattr(torch, group["dtype"])).to(stacked.dtype)
        for (parameter, _), wide in zip(batch, orthogonal, strict=True):
            rows, columns = parameter.shape
            # As in the reference: scale up the update of a tall matrix, so that its rows do not
            # shrink.
            size = -rate * math.sqrt(max(1.0, rows / columns))
            update = wide if rows <= columns else wide.T
            keep: float | torch.Tensor = 1 - rate * group["weight_decay"]
            if skip is not None:
                update = torch.where(skip > 0, torch.zeros_like(update), update)
                keep = torch.where(skip > 0, 1.0, keep)
            parameter.mul_(keep).add_(update, alpha=size)


def orthogonalize(
    matrices: torch.Tensor, dtype: torch.dtype = torch.float32, steps: int = 5
) -> torch.Tensor:
    """Approximate the nearest semi-orthogonal matrix: singular values between 0.7 and 1.2 instead of 1.

    Newton-Schulz iterations with the quintic polynomial of Jordan et al. 2024, "Muon", whose
    coefficients make small singular values grow as fast as possible.

    Args:
        matrices: (batch, rows, columns) with rows <= columns.
        dtype: dtype of the iterations; bf16 is precise enough.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x: torch.Tensor = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    x = x.to(dtype)
    for _ in range(steps):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x
