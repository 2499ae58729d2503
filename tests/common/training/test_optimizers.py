"""AdamW: which parameters decay, and the update itself against the paper's equations in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from common.models import Decoder
from common.models.base import BaseModel, ParameterRole
from common.training.config import OptimizerConfig
from common.training.optimizers import create_optimizer, orthogonalize
from projects.custom_transformer.model import CustomTransformer
from projects.speedrun.model import NeuralNGram

MODELS: dict[str, nn.Module] = {
    "gpt2": Decoder(11, num_layers=1, hidden_size=8, num_heads=2),
    "llama": Decoder(11, preset="llama", num_layers=1, hidden_size=8, num_heads=2, qk_norm=True),
    "char_lstm": Decoder(11, preset="char_lstm", num_layers=1, hidden_size=8),
    "custom_transformer": CustomTransformer(
        11, num_layers=1, num_heads=2, hidden_size=8, context_length=6
    ),
    "speedrun": NeuralNGram(11, hidden_size=8, intermediate_size=8),
    "a module": nn.Sequential(nn.Embedding(5, 4), nn.Conv1d(4, 4, 2), nn.Linear(4, 3)),
}
every_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


@every_model
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


@every_model
def test_muon_takes_the_hidden_matrices(model: nn.Module) -> None:
    """By the names that these models have; their `parameter_roles` know no name but `head`."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    others = ("head.", "token_embedding", "position_embedding")
    expected = {
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and id(parameter) not in embeddings and not name.startswith(others)
    }
    optimizer = create_optimizer(model, OptimizerConfig(name="muon"))
    groups = [g for g in optimizer.param_groups if g["algorithm"] == "muon"]
    assert {name for group in groups for name in group["param_names"]} == expected != set()


class Tables(BaseModel):
    """An embedding that is no module."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.mix = nn.Parameter(torch.ones(5, 4)), nn.Parameter(torch.ones(4, 4))

    def parameter_roles(self) -> dict[str, ParameterRole]:
        table: dict[str, ParameterRole] = {"table": "embedding"}
        return super().parameter_roles() | table


def test_a_model_says_what_its_parameters_are() -> None:
    optimizer = create_optimizer(Tables(), OptimizerConfig(name="muon"))
    named = {g["algorithm"]: g["param_names"] for g in optimizer.param_groups}
    assert named == {"adamw": ["table"], "muon": ["mix"]}


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


# Muon


def test_orthogonalized_matrices_have_singular_values_near_one_whatever_they_had() -> None:
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(3, 16, 40, generator=generator, dtype=torch.float64)
    matrices[1] *= 1e-4
    found = orthogonalize(matrices, torch.float64)
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.3 and values.max() < 1.3
    for matrix, made in zip(matrices, found, strict=True):
        # The singular vectors stay: U^T M V of the exact factors is diagonal.
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
        inner = left.T @ made @ right.T
        assert (inner - inner.diagonal().diag()).abs().max() < 1e-6


def test_a_muon_step_is_that_of_a_plain_loop_matrix_by_matrix_in_float64() -> None:
    """Jordan et al. 2024: momentum, Nesterov, five iterations, the size of the update by shape."""
    model = nn.ModuleDict(
        {
            "wide": nn.Linear(12, 5),
            "tall": nn.Linear(5, 12),
            "same": nn.Linear(12, 5),
            "embedding": nn.Embedding(7, 5),
        }
    ).double()
    config = OptimizerConfig(name="muon", muon_lr=0.1, muon_momentum=0.8, muon_weight_decay=0.5)
    optimizer = create_optimizer(model, config, torch.float64)
    by_muon = [g for g in optimizer.param_groups if g["algorithm"] == "muon"]
    assert sum(len(group["params"]) for group in by_muon) == 3, "no embedding, no bias"
    generator = torch.Generator().manual_seed(1)
    expected = {name: p.detach().clone() for name, p in model.named_parameters() if p.ndim == 2}
    buffers = {name: torch.zeros_like(p) for name, p in expected.items()}
    for _ in range(3):
        for name, parameter in model.named_parameters():
            gradient = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.grad = gradient.clone()
            if parameter.ndim != 2 or name.startswith("embedding"):
                continue
            buffers[name] = 0.8 * buffers[name] + 0.2 * gradient / 4.0
            x = 0.2 * gradient / 4.0 + 0.8 * buffers[name]
            x = x / (x.norm() + 1e-7)
            for _ in range(5):
                gram = x @ x.T
                x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
            rows, columns = x.shape
            expected[name] *= 1 - 0.1 * 0.5
            expected[name] -= 0.1 * math.sqrt(max(1, rows / columns)) * x
        optimizer.step(divisor=torch.tensor(4.0))
        optimizer.zero_grad()
    for name, value in expected.items():
        if not name.startswith("embedding"):
            found = model.get_parameter(name).detach()
            torch.testing.assert_close(found, value, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_skipped_step_changes_neither_weights_nor_state(name: str) -> None:
    model = nn.Linear(4, 3)
    optimizer = create_optimizer(model, OptimizerConfig(name=name))
    for skip in (0.0, 1.0):
        before = [p.detach().clone() for p in model.parameters()]
        state = [v.clone() for p in model.parameters() for v in optimizer.state[p].values()]
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, math.nan if skip else 0.5)
        optimizer.step(divisor=torch.tensor(1.0), skip=torch.tensor(skip))
    after = [v for p in model.parameters() for v in optimizer.state[p].values()]
    assert all(torch.equal(a, p.detach()) for a, p in zip(before, model.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(state, after, strict=True))


def test_the_divisor_is_that_of_the_gradient() -> None:
    results = []
    for scale, divisor in ((1.0, None), (8.0, torch.tensor(8.0))):
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        optimizer = create_optimizer(model, OptimizerConfig())
        for step in range(3):
            for parameter in model.parameters():
                parameter.grad = torch.full_like(parameter, scale * (step + 1) / 8)
            optimizer.step(divisor=divisor)
        results.append([p.detach() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_learning_rates_have_the_factors_of_their_names_and_the_schedule() -> None:
    model = Decoder(11, num_layers=1, hidden_size=8, num_heads=2)
    factors = {"token_embedding.*": 5.0, "*.bias": 0.5, "token*": 9.0}
    optimizer = create_optimizer(model, OptimizerConfig(lr=0.1, lr_factors=factors))
    optimizer.set_learning_rate_factor(0.5)
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rate[id(model.token_embedding.weight)] == pytest.approx(0.25)  # the first match counts
    assert rate[id(model.final_norm.bias)] == pytest.approx(0.025)
    assert rate[id(model.final_norm.weight)] == pytest.approx(0.05)
