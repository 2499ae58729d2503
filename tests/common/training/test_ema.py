"""Averaged weights: the formula, and that only judging sees them."""

from __future__ import annotations

import torch
from torch import nn

from common.training.ema import WeightAverage


def test_the_average_follows_its_recurrence_in_float64() -> None:
    model = nn.Linear(3, 2).double()
    average = WeightAverage(model, decay=0.7)
    expected = model.weight.detach().clone()
    for step in range(1, 8):
        with torch.no_grad():
            model.weight.copy_(torch.randn(2, 3, dtype=torch.float64))
        average.update(step)
        decay = min(0.7, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach()
    torch.testing.assert_close(average.weights["weight"], expected, rtol=1e-12, atol=1e-14)


def test_the_model_has_the_average_inside_of_the_block_only() -> None:
    model = nn.Linear(3, 2)
    average = WeightAverage(model, decay=0.5)
    with torch.no_grad():
        model.weight.add_(1.0)
    average.update(1)
    trained, averaged = model.weight.detach().clone(), average.weights["weight"].clone()
    assert not torch.equal(trained, averaged)
    with average.applied():
        assert torch.equal(model.weight, averaged)
    assert torch.equal(model.weight, trained)
    assert torch.equal(average.weights["weight"], averaged)
