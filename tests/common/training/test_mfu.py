"""FLOPs per token against PyTorch's own count, and peaks against what the chips are made of."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from common.models import Decoder
from common.models.base import BaseLanguageModel
from common.training.mfu import (
    flops_per_token,
    model_flops_per_token,
    peak_flops,
    peak_flops_of,
)


def test_the_formula_of_palm_on_its_largest_model() -> None:
    """Chowdhery et al. 2022: 540.35e9 parameters, 118 layers, 48 heads of 256, 2048 tokens.

    Its 238.3e3 tokens/s on 6144 TPU v4 of 275 TFLOP/s are stated as 46.2% MFU, 45.7% without
    self-attention.
    """
    peak = 6144 * 275e12
    with_attention = flops_per_token(540_350_000_000, 118, 48, 256, 2048)
    without = flops_per_token(540_350_000_000, 0, 48, 256, 2048)
    assert 238.3e3 * with_attention / peak == pytest.approx(0.462, abs=5e-4)
    assert 238.3e3 * without / peak == pytest.approx(0.457, abs=5e-4)


def model(**options: object) -> Decoder:
    sizes = {"num_layers": 2, "num_heads": 4, "hidden_size": 32, "context_length": 64}
    return Decoder(50, **(sizes | options))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"preset": "llama"},
        {"tie_embeddings": False, "num_layers": 1},
        {"positions": "none", "num_heads": 2},
    ],
)
def test_it_is_what_pytorch_counts(options: dict[str, object]) -> None:
    decoder = model(**options)
    ids = torch.zeros(3, 64, dtype=torch.int64)
    with (
        FlopCounterMode(display=False) as counter,
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
    ):
        decoder.compute_loss(ids, ids).backward()
    # Norms and biases are in no matrix product: PyTorch does not count them.
    vectors = sum(p.numel() for p in decoder.parameters() if p.ndim == 1)
    counted = counter.get_total_flops() / ids.numel()
    assert model_flops_per_token(decoder, 64) == counted + 6 * vectors


def test_shorter_sequences_cost_less() -> None:
    decoder = model()
    long, short = (model_flops_per_token(decoder, length) for length in (64, 16))
    assert long is not None and short is not None
    assert long - short == 12 * 2 * 32 * (64 - 16)


def test_an_lstm_has_no_attention() -> None:
    lstm = model(preset="char_lstm")
    embedding = 50 * 32
    assert model_flops_per_token(lstm, 64) == 6 * (lstm.num_parameters() - embedding)


@pytest.mark.parametrize(
    ("mixer", "per_layer"),
    [
        ("gla", 4 * 2 * 8 * 16),  # heads, keys, values
        ("retnet", 4 * 2 * 16 * 32),
        ("mamba2", 4 * 1 * 64 * 64),
        ("mlstm", 4 * 2 * 8 * 17),  # and the normaliser
        ("gated_delta_net", 8 * 2 * 16 * 16),
        ("rwkv7", 8 * 2 * 16 * 16),
        ("mamba", 6 * 64 * 16),
    ],
)
def test_a_recurrence_takes_the_same_at_every_length(mixer: str, per_layer: int) -> None:
    shape = {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "positions": "none"}
    model = Decoder(50, mixer=mixer, **shape)
    products = 6 * model.num_parameters()  # the embedding is also the output layer
    for length in (16, 64):
        assert model_flops_per_token(model, length) == products + 3 * 2 * per_layer


def test_of_an_unknown_model_nothing_is_said() -> None:
    assert model_flops_per_token(BaseLanguageModel(50), 64) is None
    sizes = {"num_layers": 2, "num_heads": 4, "hidden_size": 32}
    for other in ({"mixer": "mamba"}, {"feedforward": "moe"}):
        assert model_flops_per_token(BaseLanguageModel(50, **sizes, **other), 64) is None


# (name, streaming multiprocessors, dense bf16 and fp32 FLOP per clock of one, GHz), from the
# architecture white papers; tensor cores of the H100 run at a clock of their own.
@pytest.mark.parametrize(
    ("name", "units", "bf16", "fp32", "bf16_ghz", "fp32_ghz"),
    [
        ("NVIDIA A100-SXM4-80GB", 108, 2048, 128, 1.41, 1.41),
        ("A100-SXM4-40GB", 108, 2048, 128, 1.41, 1.41),
        ("NVIDIA A100-PCIE-40GB", 108, 2048, 128, 1.41, 1.41),
        ("NVIDIA A100 80GB PCIe", 108, 2048, 128, 1.41, 1.41),
        ("NVIDIA H100 80GB HBM3", 132, 4096, 256, 1.83, 1.98),
        ("NVIDIA H100 PCIe", 114, 4096, 256, 1.62, 1.755),
        ("NVIDIA H200", 132, 4096, 256, 1.83, 1.98),
        ("NVIDIA L4", 58, 1024, 256, 2.04, 2.04),
        ("NVIDIA L40", 142, 512, 256, 2.49, 2.49),
        ("NVIDIA L40S", 142, 1024, 256, 2.49, 2.52),
        ("NVIDIA A10", 72, 1024, 256, 1.695, 1.695),
        ("NVIDIA A40", 84, 1024, 256, 1.74, 1.74),
        ("NVIDIA RTX A6000", 84, 1024, 256, 1.80, 1.80),
        ("NVIDIA GeForce RTX 3090", 82, 512, 256, 1.695, 1.695),
        ("NVIDIA GeForce RTX 4090", 128, 512, 256, 2.52, 2.52),
        ("Tesla V100-SXM2-16GB", 80, None, 128, None, 1.53),
        ("Tesla V100-PCIE-32GB", 80, None, 128, None, 1.38),
        ("Tesla V100S-PCIE-32GB", 80, None, 128, None, 1.597),
        ("Tesla T4", 40, None, 128, None, 1.59),
    ],
)
def test_peaks_are_units_times_clock(
    name: str, units: int, bf16: int | None, fp32: int, bf16_ghz: float | None, fp32_ghz: float
) -> None:
    assert peak_flops_of(name, "fp32") == pytest.approx(units * fp32 * fp32_ghz * 1e9, rel=0.015)
    found = peak_flops_of(name, "bf16")
    if bf16 is None or bf16_ghz is None:
        assert found is None and peak_flops_of(name, "tf32") is None
    else:
        assert found == pytest.approx(units * bf16 * bf16_ghz * 1e9, rel=0.015)
        assert peak_flops_of(name, "tf32") == pytest.approx(found / 2, rel=0.015)


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA A10G",
        "NVIDIA L400",
        "AMD Instinct MI300X",
        "",
    ],
)
def test_of_an_unknown_device_nothing_is_said(name: str) -> None:
    assert peak_flops_of(name, "bf16") is None and peak_flops_of(name, "fp32") is None


def test_of_a_processor_nothing_is_said() -> None:
    assert peak_flops(torch.device("cpu"), "fp32") is None


def test_fp32_on_tensor_cores_is_measured_by_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-40GB")
    device = torch.device("cuda")
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "highest")
    assert peak_flops(device, "fp32") == 19.5e12
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert peak_flops(device, "fp32") == 156e12
    assert peak_flops(device, "bf16") == 312e12
