"""Mixtures of experts: every token by hand, losses apart, an even load, exact resumes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from common.models import Decoder
from common.models.config import DecoderConfig
from common.models.feedforwards.moe import MoE
from common.models.loss import is_padding
from common.models.mixers.base import Positions
from common.models.mixers.options import MoEOptions

OPTIONS: list[dict[str, Any]] = [
    {},
    {"num_experts": 5, "top_k": 1, "normalize": False},
    {"scores": "sigmoid", "num_shared": 2, "scale": 2.5},
    {"num_groups": 4, "top_groups": 2, "balance": "bias", "expert_size": 3},
    {"top_k": 8, "balance": "none"},
]


def layer_of(options: dict[str, Any]) -> MoE:
    torch.manual_seed(0)
    layer = MoE(DecoderConfig(hidden_size=16), MoEOptions(**options), 0).double()
    layer.reset_parameters(0.3, 0.3)
    torch.nn.init.normal_(layer.bias, std=0.1)
    return layer


def by_hand(layer: MoE, x: torch.Tensor) -> torch.Tensor:
    """One token (hidden,), one expert at a time."""
    options = layer.options
    logits = layer.router.weight @ x
    scores = logits.softmax(0) if options.scores == "softmax" else logits.sigmoid()
    ranked = (scores + layer.bias).tolist()
    size = options.num_experts // options.num_groups
    groups = [ranked[start : start + size] for start in range(0, len(ranked), size)]
    best = sorted(range(len(groups)), key=lambda g: -sum(sorted(groups[g])[-2:]))
    kept = [e for e in range(len(ranked)) if e // size in best[: options.top_groups]]
    chosen = sorted(kept, key=lambda e: -ranked[e])[: options.top_k]
    weights = scores[chosen]
    if options.normalize:
        weights = weights / weights.sum()
    output = torch.zeros_like(x)
    for weight, expert in zip(weights * options.scale, chosen, strict=True):
        gate, value = (layer.input[expert] @ x).chunk(2)
        output += weight * (layer.output[expert] @ (F.silu(gate) * value))
    if layer.shared is not None:
        gate, value = layer.shared["input"](x).chunk(2)
        output += layer.shared["output"](F.silu(gate) * value)
    return output


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_token_is_the_weighted_sum_of_its_experts(options: dict[str, Any]) -> None:
    layer = layer_of(options)
    x = torch.randn(3, 7, 16, dtype=torch.float64)
    expected = torch.stack([by_hand(layer, token) for token in x.flatten(0, 1)]).view_as(x)
    torch.testing.assert_close(layer(x, Positions()), expected)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_its_gradients_are_those_of_finite_differences(options: dict[str, Any]) -> None:
    layer = layer_of(options)
    x = torch.randn(2, 5, 16, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: layer(x, Positions()), x)


def test_parameters_that_a_token_meets() -> None:
    layer = layer_of({"num_experts": 8, "top_k": 2})
    expert = layer.input[0].numel() + layer.output[0].numel()
    assert layer.active_parameters() == layer.router.weight.numel() + 2 * expert
    dense = Decoder(50, hidden_size=64, feedforward="swiglu").num_parameters()
    sparse = Decoder(50, hidden_size=64, feedforward="moe")
    idle = sum(e.input[:6].numel() + e.output[:6].numel() for e in sparse.experts)
    routers = sum(e.router.weight.numel() for e in sparse.experts)
    biases = dense - Decoder(50, hidden_size=64, feedforward="swiglu", bias=False).num_parameters()
    assert abs(sparse.num_parameters() - idle - routers - dense) <= biases, "as many are active"


def model_of(balance: str, **options: Any) -> Decoder:
    torch.manual_seed(0)
    moe = {"balance": balance, "loss_weight": 1.0, "bias_step": 0.01, **options}
    return Decoder(50, hidden_size=32, num_heads=2, feedforward="moe", options={"moe": moe})


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_auxiliary_loss_is_in_the_gradient_and_in_no_reported_loss(checkpointing: bool) -> None:
    ids = torch.randint(0, 50, (4, 32))
    losses, gradients = {}, {}
    for balance in ("loss", "none"):
        model = model_of(balance).train()
        model.activation_checkpointing = checkpointing
        loss = model.training_loss(ids, ids)
        loss.backward()
        losses[balance] = loss.item()
        gradients[balance] = model.experts[0].router.weight.grad
        assert model.eval().compute_loss(ids, ids).item() == loss.item()
    assert losses["loss"] == losses["none"]
    assert not torch.equal(gradients["loss"], gradients["none"])

    # Switch's eq. 4 for the first layer, from the scores themselves.
    model = model_of("loss").train()
    layer, seen = model.experts[0], []
    norm = model.blocks[0].feedforward_norm
    norm.register_forward_hook(lambda _, inputs, output: seen.append(output.detach()))
    model.zero_grad()
    model.compute_loss(ids, ids).backward()
    scores, experts, _ = layer.route(seen[0].flatten(0, 1))
    share = torch.bincount(experts.flatten(), minlength=8) / experts.numel()
    (expected,) = torch.autograd.grad(8 * (share * scores.mean(0)).sum(), layer.router.weight)
    if not checkpointing:
        found = gradients["loss"] - gradients["none"]
        # That of later layers reaches this router through the residual stream as well.
        assert F.cosine_similarity(found.flatten(), expected.flatten(), dim=0) > 0.9


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_token_is_counted_once(checkpointing: bool) -> None:
    model = model_of("bias").train()
    model.activation_checkpointing = checkpointing
    ids = torch.randint(0, 50, (4, 32))
    for _ in range(3):
        model.training_loss(ids, ids).backward()
    model.end_step(lambda total: total)
    assert [int(layer.load.sum()) for layer in model.experts] == [3 * 4 * 32 * 2] * 4
    assert not any(layer.new_load.any() for layer in model.experts)
    metrics = model.training_metrics()
    assert metrics["expert_dead_experts_0"] == 0 and 0 < metrics["expert_top_k_mass_0"] <= 1
    assert 0 < metrics["expert_load_entropy_bits_0"] <= math.log2(8)
    assert model.training_metrics() == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("balance", "options", "most"),
    [("loss", {"loss_weight": 0.1}, 0.2), ("bias", {"bias_step": 0.02}, 0.5), ("none", {}, None)],
)
def test_balancing_evens_the_load(
    balance: str, options: dict[str, Any], most: float | None
) -> None:
    """Left to itself, the router of this text sends everything to the same two experts."""
    model = model_of(balance, **options).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    draw = torch.Generator().manual_seed(0)
    for step in range(120):
        ids = torch.randint(0, 50, (16, 64), generator=draw) ** 2 // 50
        model.training_loss(ids, ids).backward()
        optimizer.step()
        optimizer.zero_grad()
        model.end_step(lambda total: total)
        if step == 79:
            model.training_metrics()
    excess = max(value for key, value in model.training_metrics().items() if "excess" in key)
    assert excess < most if most else excess > 2


def test_the_bias_is_part_of_a_checkpoint(tmp_path: Path) -> None:
    model = model_of("bias")
    torch.nn.init.normal_(model.experts[0].bias)
    loaded = Decoder.load_checkpoint(model.save_checkpoint(tmp_path / "model"))
    assert torch.equal(loaded.experts[0].bias, model.experts[0].bias)


def test_impossible_options_are_refused() -> None:
    from common.errors import ModelError

    for options, reason in (
        ({"top_k": 9}, "more than the 8"),
        ({"num_groups": 3}, "multiple of num_groups"),
        ({"top_groups": 2}, "more than num_groups"),
        ({"experts": 4}, "experts"),
    ):
        with pytest.raises(ModelError, match=reason):
            Decoder(50, feedforward="moe", options={"moe": options})


def test_padding_starts_where_no_label_follows() -> None:
    labels = torch.tensor([[-100, 5, -100, 7, -100, -100], [-100] * 6, [1, 2, 3, 4, 5, 6]])
    expected = [[False] * 4 + [True] * 2, [True] * 6, [False] * 6]
    assert is_padding(labels).tolist() == expected


@pytest.mark.parametrize("options", [*OPTIONS, {"loss_weight": 1.0}], ids=str)
def test_padding_is_in_no_statistic_of_the_router(options: dict[str, Any]) -> None:
    layer = layer_of(options)
    x = torch.randn(3, 7, 16, dtype=torch.float64)
    padding = torch.arange(7) >= torch.tensor([[2], [7], [5]])
    output, found = layer.routed(x, Positions(padding=padding))
    alone, expected = layer.routed(x[~padding], Positions())
    torch.testing.assert_close(output[~padding], alone)
    assert int(found.load.sum()) == 14 * layer.options.top_k
    torch.testing.assert_close(found, expected)
    if layer.options.balance == "loss":
        weight = layer.router.weight
        gradients = [torch.autograd.grad(each.loss, weight) for each in (found, expected)]
        torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-15)
        assert gradients[0][0].any()


@pytest.mark.parametrize("method", ["forward", "compute_loss"])
@pytest.mark.parametrize("balance", ["loss", "bias"])
def test_padded_rows_train_as_they_do_without_padding(balance: str, method: str) -> None:
    ids = torch.randint(0, 50, (4, 32))
    labels = ids.clone()
    labels[:, :3] = -100  # a prompt, which is no padding
    labels[:, 20:] = -100
    gradients, models = [], []
    for time in (20, 32):
        model = model_of(balance).double().train()
        output = getattr(model, method)(ids[:, :time], labels[:, :time])
        loss = output["loss"] if method == "forward" else output
        loss.backward()
        model.end_step(lambda total: total)
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
        models.append(model)
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-14)
    for one, other in zip(models[0].experts, models[1].experts, strict=True):
        assert int(one.load.sum()) == 4 * 20 * 2
        assert torch.equal(one.load, other.load) and torch.equal(one.bias, other.bias)
        assert one.bias.any() == (balance == "bias")
    assert models[0].training_metrics() == pytest.approx(models[1].training_metrics(), rel=1e-6)


def test_a_batch_of_padding_changes_nothing() -> None:
    model = model_of("loss").train()
    ids = torch.randint(0, 50, (2, 8))
    model.compute_loss(ids, torch.full_like(ids, -100)).backward()
    assert not any(
        parameter.grad.any() for parameter in model.parameters() if parameter.grad is not None
    )
    model.end_step(lambda total: total)
    assert model.training_metrics() == {}
