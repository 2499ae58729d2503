"""Devices and dtypes: what is there is used, what is not is an error that says what to do."""

from __future__ import annotations

import pytest
import torch

from common.errors import TrainingError
from common.training.precision import autocast, select_device, select_precision

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


def test_auto_precision_is_fp32_on_a_cpu() -> None:
    assert select_precision("auto", torch.device("cpu")) == "fp32"
    assert select_precision("bf16", torch.device("cpu")) == "bf16"
    assert select_precision("fp32", torch.device("cpu")) == "fp32"


def test_bf16_computes_matrices_in_bf16_and_fp32_does_not() -> None:
    device = torch.device("cpu")
    layer, x = torch.nn.Linear(3, 3), torch.randn(2, 3)
    with autocast("bf16", device):
        assert layer(x).dtype == torch.bfloat16
    with autocast("fp32", device):
        assert layer(x).dtype == torch.float32


@pytest.mark.gpu
@pytest.mark.skipif(not has_cuda, reason="needs a CUDA device")
def test_auto_takes_the_card_and_its_bf16() -> None:
    device = select_device("auto")
    assert device.type == "cuda"
    expected = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    assert select_precision("auto", device) == expected
