"""AdamW: which parameters decay, and the update itself against the paper's equations in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from common.models import Decoder
from common.training.config import OptimizerConfig
from common.training.optimizers import create_optimizer
from projects.custom_transformer.model import CustomTransformer

pytestmark = pytest.mark.slow  # the first optimizer of a process imports much of PyTorch


@pytest.mark.parametrize(
    "model",
    [
        Decoder(11, num_layers=1, hidden_size=8, num_heads=2),
        Decoder(11, preset="llama", num_layers=1, hidden_size=8, num_heads=2, qk_norm=True),
        Decoder(11, preset="char_lstm", num_layers=1, hidden_size=8),
        CustomTransformer(11, num_layers=1, num_heads=2, hidden_size=8, context_length=6),
    ],
    ids=["gpt2", "llama", "char_lstm", "custom_transformer"],
)
def test_only_matrices_decay_and_every_parameter_is_in_one_group(model: nn.Module) -> None:
    optimizer = create_optimizer(model, OptimizerConfig(weight_decay=0.3))
    decay = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(decay)
    assert set(decay) == {id(p) for p in model.parameters()}
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim >= 2
        assert decay[id(parameter)] == (0.3 if is_matrix else 0.0), name


def test_frozen_parameters_are_left_out() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[0].requires_grad_(False)
    optimizer = create_optimizer(model, OptimizerConfig())
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in model[1].parameters()}


def test_a_model_of_matrices_alone_needs_no_second_group() -> None:
    optimizer = create_optimizer(nn.Linear(3, 3, bias=False), OptimizerConfig())
    assert len(optimizer.param_groups) == 1


def test_the_update_is_that_of_the_paper() -> None:
    """Loshchilov and Hutter 2019, algorithm 2, with the schedule multiplier in the rate."""
    config = OptimizerConfig(lr=0.01, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.2)
    model = nn.Linear(4, 3).double()
    optimizer = create_optimizer(model, config)
    generator = torch.Generator().manual_seed(0)
    expected = {name: p.detach().clone() for name, p in model.named_parameters()}
    mean = {name: torch.zeros_like(p) for name, p in expected.items()}
    square = {name: torch.zeros_like(p) for name, p in expected.items()}
    for step in range(1, 6):
        for name, parameter in model.named_parameters():
            gradient = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.grad = gradient
            mean[name] = 0.8 * mean[name] + 0.2 * gradient
            square[name] = 0.95 * square[name] + 0.05 * gradient**2
            decay = 0.2 if parameter.ndim == 2 else 0.0
            update = mean[name] / (1 - 0.8**step)
            update = update / ((square[name] / (1 - 0.95**step)).sqrt() + 1e-6)
            expected[name] = expected[name] - 0.01 * (update + decay * expected[name])
        optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-9, atol=1e-12)
        assert math.isfinite(parameter.sum().item())
