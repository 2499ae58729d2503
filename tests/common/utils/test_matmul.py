"""fp32 products keep the digits of fp32, whichever library multiplies."""

from __future__ import annotations

import pytest
import torch

from common.training.precision import supported_precisions
from common.utils.matmul import float32_matmul_precision, fp32_matmul, is_medium_reduced

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("rows", [1, 16, 300])
def test_products_have_the_digits_of_fp32(rows: int) -> None:
    a, b = torch.randn(rows, 300), torch.randn(300, 200)
    exact = a.double() @ b.double()
    plain = float((a @ b - exact).abs().max())
    with fp32_matmul(CPU):
        error = float((a @ b - exact).abs().max())
        gradient_error = float((a.T @ (a @ b) - a.T.double() @ exact).abs().max())
    assert error < 3 * plain < 1e-4  # of bf16 it would be 1e-2
    assert gradient_error < 0.02


def test_bf32_is_offered_only_where_it_is_something_else() -> None:
    a = torch.full((64, 64), 1 + 2.0**-12)
    with float32_matmul_precision("medium"):
        lost = abs(float((a @ a)[0, 0]) - 64 * (1 + 2.0**-12) ** 2) > 0.01
    assert is_medium_reduced() is lost
    assert ("bf32" in supported_precisions(CPU)) is lost


def test_the_setting_is_of_the_cpu_alone_and_comes_back() -> None:
    before = torch.get_float32_matmul_precision()
    with fp32_matmul(CUDA):  # "medium" would be TF32 there
        assert torch.get_float32_matmul_precision() == "highest"
    with pytest.raises(ZeroDivisionError), fp32_matmul(CPU):
        _ = 1 / 0
    assert torch.get_float32_matmul_precision() == before
