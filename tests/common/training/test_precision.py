"""Devices and dtypes: what is there is used, what is not is an error that says what to do."""

from __future__ import annotations

import pytest
import torch

from common.errors import TrainingError
from common.training.precision import (
    LossScaler,
    autocast,
    check_precision,
    fastest_fp32,
    matmul_precision,
    select_device,
)

has_cuda = torch.cuda.is_available()


def test_cpu_and_auto_are_always_there() -> None:
    assert select_device("cpu") == torch.device("cpu")
    assert select_device("auto").type in ("cpu", "cuda", "mps")


@pytest.mark.parametrize("name", ["tpu9", "", "cuda:banana", "cuda:99", "cpu cpu"])
def test_a_device_that_is_not_there_is_an_error_never_a_fallback(name: str) -> None:
    with pytest.raises(TrainingError) as caught:
        select_device(name)
    assert f"'{name}'" in caught.value.message and "\n" not in caught.value.message
    assert "training.device" in caught.value.hint


@pytest.mark.skipif(has_cuda, reason="needs a machine without CUDA")
def test_cuda_without_a_card_is_an_error() -> None:
    with pytest.raises(TrainingError, match="cuda"):
        select_device("cuda")


def test_a_precision_that_the_device_lacks_is_an_error_that_lists_what_it_has() -> None:
    check_precision("auto", torch.device("cpu"))
    check_precision("fp16", torch.device("cpu"))
    with pytest.raises(TrainingError, match="cpu does not support tf32") as caught:
        check_precision("tf32", torch.device("cpu"))
    assert "fp32" in caught.value.hint and "bf16" in caught.value.hint


@pytest.mark.parametrize("precision", ["fp32", "bf32"])
def test_matrix_products_are_as_exact_as_fp32_or_say_so(precision: str) -> None:
    a, b = torch.randn(64, 300), torch.randn(300, 64)
    before = torch.get_float32_matmul_precision()
    with matmul_precision(precision):
        error = ((a @ b).double() - a.double() @ b.double()).abs().max()
    assert error < (1e-4 if precision == "fp32" else 0.5)
    assert torch.get_float32_matmul_precision() == before


def test_the_fastest_fp32_has_the_digits_of_fp32() -> None:
    a, b = torch.randn(300, 300), torch.randn(300, 200)
    plain = ((a @ b).double() - a.double() @ b.double()).abs().max()
    with matmul_precision(fastest_fp32(torch.device("cpu"))):
        error = ((a @ b).double() - a.double() @ b.double()).abs().max()
    assert error < 3 * plain < 1e-3  # of bf16 it would be 0.1


def test_the_loss_scale_halves_on_overflow_and_doubles_after_enough_good_steps() -> None:
    scaler = LossScaler(torch.device("cpu"), initial_scale=8.0, growth_steps=3)
    scales = []
    for overflow in (0, 0, 1, 0, 0, 0, 0):
        scaler.update(torch.tensor(float(overflow)))
        scales.append(float(scaler.scale))
    assert scales == [8.0, 8.0, 4.0, 4.0, 4.0, 8.0, 8.0]
    again = LossScaler(torch.device("cpu"), growth_steps=3)
    again.load_state(scaler.state())
    for _ in range(2):
        again.update(torch.tensor(0.0))
    assert float(again.scale) == 16.0  # its third good step: the count came back too


def test_only_an_overflow_at_the_smallest_scale_means_divergence() -> None:
    scaler = LossScaler(torch.device("cpu"), initial_scale=4 * LossScaler.min_scale)
    diverged = [float(scaler.update(torch.tensor(1.0))) for _ in range(4)]
    assert diverged == [0.0, 0.0, 1.0, 1.0] and float(scaler.scale) == LossScaler.min_scale
    assert float(scaler.update(torch.tensor(0.0))) == 0.0


def test_the_scale_never_grows_to_infinity() -> None:
    scaler = LossScaler(torch.device("cpu"), growth_steps=1)
    for _ in range(200):
        scaler.update(torch.tensor(0.0))
    assert float(scaler.scale) == LossScaler.max_scale


def test_bf16_computes_matrices_in_bf16_and_fp32_does_not() -> None:
    device = torch.device("cpu")
    layer, x = torch.nn.Linear(3, 3), torch.randn(2, 3)
    with autocast("bf16", device):
        assert layer(x).dtype == torch.bfloat16
    with autocast("fp32", device):
        assert layer(x).dtype == torch.float32


@pytest.mark.gpu
@pytest.mark.skipif(not has_cuda, reason="needs a CUDA device")
def test_auto_takes_the_card() -> None:
    assert select_device("auto").type == "cuda"
