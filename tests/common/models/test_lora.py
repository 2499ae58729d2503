"""LoRA against its formula, and what it must leave alone: the base."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from common.errors import CheckpointError, ConfigError, ModelError
from common.models import Decoder, add_lora, merge_lora
from common.models.checkpoint import load_checkpoint
from common.models.linear_loss import linear_next_token_loss
from common.models.lora import LoRALinear
from common.models.quantization import Quantization
from common.models.quantize import quantize
from common.training.config import OptimizerConfig
from common.training.ema import WeightAverage
from common.training.optimizers import create_optimizer

IDS = torch.randint(97, (2, 16), generator=torch.Generator().manual_seed(0))


def decoder(dtype: torch.dtype = torch.float32, **options: Any) -> Decoder:
    torch.manual_seed(0)
    shape = {"num_layers": 2, "hidden_size": 32, "num_heads": 4, "context_length": 32}
    return Decoder(97, **(shape | options)).to(dtype)


def with_lora(dtype: torch.dtype = torch.float32, **options: Any) -> Decoder:
    """A model whose adapters do something."""
    model = decoder(dtype)
    add_lora(model, **options)
    for name, parameter in model.named_parameters():
        if name.endswith("lora_b"):
            nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_layer_computes_equation_3(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(24, 40).to(dtype)
    layer = LoRALinear(linear, rank=4, alpha=10.0, dropout=0.0)
    layer.bias.data = layer.bias.data.float()
    nn.init.normal_(layer.lora_b)
    x = torch.randn(3, 5, 24, requires_grad=True)
    output = layer(x)
    upstream = torch.randn_like(output)
    output.backward(upstream)

    w, b, a = (t.detach().double() for t in (linear.weight, linear.bias, layer.lora_a))
    a, low = a.requires_grad_(), layer.lora_b.detach().double().requires_grad_()
    exact = x.detach().double().requires_grad_()
    expected = exact @ w.T + b + 10.0 / 4 * (exact @ a.T) @ low.T
    expected.backward(upstream.double())
    for ours, theirs in (
        (output, expected),
        (x.grad, exact.grad),
        (layer.lora_a.grad, a.grad),
        (layer.lora_b.grad, low.grad),
    ):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)
    assert layer.frozen.grad is None and layer.frozen.dtype == dtype


def test_matrices_of_many_slices_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.models.frozen._SLICE_BYTES", 300)
    monkeypatch.setattr("common.models.linear_loss._CHUNK_BYTES", 400)
    torch.manual_seed(0)
    weight = torch.randn(97, 16).half()
    hidden = torch.randn(2, 16, 16, requires_grad=True)
    loss = linear_next_token_loss(hidden, weight, IDS)
    loss.backward()
    exact = hidden.detach().double().requires_grad_()
    logits = exact @ weight.double().T
    expected = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
    expected.backward()
    torch.testing.assert_close(loss.double(), expected)
    torch.testing.assert_close(hidden.grad.double(), exact.grad)


@pytest.mark.parametrize("tied", [True, False])
def test_a_new_adapter_changes_nothing_and_training_leaves_the_base(tied: bool) -> None:
    model = decoder(torch.bfloat16, tie_embeddings=tied)
    plain = copy.deepcopy(model).float()
    add_lora(model, rank=2, dropout=0.1)
    torch.testing.assert_close(model.eval()(IDS)["logits"], plain.eval()(IDS)["logits"])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = create_optimizer(model, OptimizerConfig(lr=0.1))
    average = WeightAverage(model, 0.5)
    model.train()
    for _ in range(3):
        model.compute_loss(IDS, IDS).backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, parameter in model.named_parameters():
        is_adapter = name.endswith(("lora_a", "lora_b"))
        assert torch.equal(parameter, before[name]) != is_adapter, name
        assert is_adapter == parameter.requires_grad == (name in average.weights)
    assert {p.dtype for n, p in model.named_parameters() if n.endswith("frozen")} == {
        torch.bfloat16
    }


def test_the_loss_makes_no_gradient_of_a_frozen_embedding(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("TiedGradient")

    monkeypatch.setattr("common.models.decoder.TiedGradient", fail)
    with_lora().train().compute_loss(IDS, IDS).backward()


OTHERS: list[dict[str, Any]] = [
    {"preset": "llama", "num_kv_heads": 2},
    {"preset": "llama", "mixer": "latent_attention"},
    {"mixer": "mamba2", "positions": "none"},
    {"feedforward": "moe"},
]


@pytest.mark.parametrize("options", [{}, *OTHERS], ids=str)
def test_merging_keeps_the_logits(options: dict[str, Any]) -> None:
    model = decoder(torch.float16, **options)
    add_lora(model, rank=3)
    for name, parameter in model.named_parameters():
        if name.endswith("lora_b"):
            nn.init.normal_(parameter, std=0.2)
    model.eval()
    before = model(IDS)["logits"]
    tokens = model.generate(IDS[:1], 8, temperature=0)
    merge_lora(model)
    after = model(IDS)["logits"]
    assert (after - before).abs().max() <= 1e-5 * before.abs().max()
    assert torch.equal(model.generate(IDS[:1], 8, temperature=0), tokens)
    assert model.lora is None and all(p.requires_grad for p in model.parameters())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.state_dict().keys() == decoder(**options).state_dict().keys()


def test_targets_are_names_of_linear_layers_or_their_ends() -> None:
    def adapted(*targets: str) -> list[str]:
        model = decoder(tie_embeddings=False)
        add_lora(model, targets=targets)
        return [name for name, module in model.named_modules() if isinstance(module, LoRALinear)]

    assert adapted("mixer.output") == ["blocks.0.mixer.output", "blocks.1.mixer.output"]
    assert adapted("output")[:2] == ["blocks.0.mixer.output", "blocks.0.feedforward.output"]
    assert adapted("blocks.1.mixer.*", "blocks.0.feedforward.input") == [
        "blocks.0.feedforward.input",
        "blocks.1.mixer.query_key_value",
        "blocks.1.mixer.output",
    ]
    assert len(adapted("*")) == 8
    for wrong in ("query", "head"):
        with pytest.raises(ModelError, match=f"no linear layer matches '{wrong}'") as error:
            adapted("output", wrong)
        assert "mixer.query_key_value, mixer.output, feedforward.input" in error.value.hint


def test_a_checkpoint_has_the_adapters_and_needs_the_same_base(tmp_path: Path) -> None:
    model = with_lora(torch.bfloat16, rank=2)
    path = model.save_checkpoint(tmp_path / "step_1")
    assert (path / "model.safetensors").stat().st_size < 20_000 < 2 * model.num_parameters()
    again = decoder(torch.bfloat16)
    add_lora(again, rank=2)
    again.load_checkpoint(path)
    assert torch.equal(again.eval()(IDS)["logits"], model.eval()(IDS)["logits"])

    with pytest.raises(CheckpointError, match="only the adapters"):
        Decoder.load_checkpoint(path)
    other = decoder(torch.bfloat16)
    other.final_norm.bias.data[0] = 1.0
    add_lora(other, rank=2)
    with pytest.raises(CheckpointError, match="base_sha256 was"):
        other.load_checkpoint(path)
    for options in ({"rank": 4}, {"rank": 2, "alpha": 1.0}):
        other = decoder(torch.bfloat16)
        add_lora(other, **options)
        with pytest.raises(CheckpointError, match="the adapters do not fit"):
            other.load_checkpoint(path)
    fewer = decoder(torch.bfloat16)
    add_lora(fewer, rank=2, targets=["output"])
    with pytest.raises(CheckpointError, match=r"unexpected: blocks\.0"):
        fewer.load_checkpoint(path)


def test_a_merged_checkpoint_fills_a_model_with_adapters(tmp_path: Path) -> None:
    merged = with_lora()
    merge_lora(merged)
    path = merged.save_checkpoint(tmp_path / "step_1")
    assert "lora" not in load_checkpoint(path).state["model"]
    model = with_lora()
    model.load_checkpoint(path)
    assert model.lora is None
    assert torch.equal(model.eval()(IDS)["logits"], merged.eval()(IDS)["logits"])


def test_what_does_not_fit_is_an_error() -> None:
    model = with_lora()
    with pytest.raises(ModelError, match="already has adapters"):
        add_lora(model)
    with pytest.raises(ModelError, match="merge them first"):
        quantize(model, Quantization("int8"))
    with pytest.raises(ConfigError, match="Muon does not train LoRA"):
        create_optimizer(model, OptimizerConfig(name="muon"))


def test_under_autocast_and_checkpointing_the_gradients_are_close() -> None:
    def gradients(autocast: bool, checkpointing: bool, dtype: torch.dtype) -> list[torch.Tensor]:
        model = with_lora(dtype).train()
        model.activation_checkpointing = checkpointing
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model.compute_loss(IDS, IDS)
        loss.backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        exact = gradients(False, False, dtype)
        for ours, theirs in zip(gradients(False, True, dtype), exact, strict=True):
            assert torch.equal(ours, theirs)
        for ours, theirs in zip(gradients(True, False, dtype), exact, strict=True):
            assert (ours - theirs).norm() < 0.05 * theirs.norm()


@pytest.mark.slow
def test_compiled_it_computes_the_same() -> None:
    model = with_lora(torch.bfloat16).train()
    eager = model.compute_loss(IDS, IDS)
    eager.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.set_compile(True)
    compiled = model.training_loss(IDS, IDS)
    compiled.backward()
    torch.testing.assert_close(compiled, eager)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-6)
