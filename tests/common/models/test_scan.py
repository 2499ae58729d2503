"""The two scans against the recurrences they stand for, token by token in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from common.models.mixers import scan
from common.models.mixers.scan import elementwise_scan, matrix_scan


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=draw)


@pytest.mark.parametrize("time", [1, 2, 9, 37])
def test_the_elementwise_scan_is_the_recurrence_with_its_gradients(time: int) -> None:
    decay, inputs, initial = randn(2, time, 3), randn(2, time, 3, seed=1), randn(2, 3, seed=2)
    hidden, expected = initial, []
    for step in range(time):
        hidden = decay[:, step] * hidden + inputs[:, step]
        expected.append(hidden)
    torch.testing.assert_close(elementwise_scan(decay, inputs, initial), torch.stack(expected, 1))
    leaves = [x.requires_grad_() for x in (decay, inputs, initial)]
    assert torch.autograd.gradcheck(elementwise_scan, leaves)


def test_the_form_for_gpus_is_the_same() -> None:
    decay, inputs = randn(2, 37, 3).requires_grad_(), randn(2, 37, 3, seed=1).requires_grad_()
    gradients = []
    for form in (scan._scan_in_order, scan._scan_in_blocks):
        output = form(decay, inputs)
        gradients.append([output, *torch.autograd.grad(output.square().sum(), (decay, inputs))])
    for mine, other in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.slow
def test_the_elementwise_scan_is_one_operator_to_the_compiler() -> None:
    torch.library.opcheck(
        scan._scan_in_order, (randn(2, 5, 3).requires_grad_(), randn(2, 5, 3).requires_grad_())
    )


def recurrence(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    log_decay: torch.Tensor,
    read: torch.Tensor | None,
    write: torch.Tensor | None,
    state: torch.Tensor,
    documents: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    outputs = []
    for t in range(query.shape[1]):
        if documents is not None and t:
            state = state * (documents[:, t] == documents[:, t - 1])[:, None, None, None]
        decay = log_decay[:, t].exp()
        new = state * (decay[..., None] if decay.ndim == 3 else decay[..., None, None])
        if read is not None and write is not None:
            new = new + torch.einsum("bhw,bhr,bhrv->bhwv", write[:, t], read[:, t], state)
        state = new + torch.einsum("bhk,bhv->bhkv", key[:, t], value[:, t])
        outputs.append(torch.einsum("bhk,bhkv->bhv", query[:, t], state))
    return torch.stack(outputs, dim=1), state


@pytest.mark.parametrize("with_documents", [False, True])
@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize("time", [1, 2, 15, 16, 17, 64, 65, 130])
def test_the_matrix_scan_is_the_recurrence(
    time: int, by_row: bool, delta: bool, with_documents: bool
) -> None:
    batch, heads, keys, values = 2, 3, 8, 5
    draw = torch.Generator().manual_seed(time)
    query, key = randn(batch, time, heads, keys), randn(batch, time, heads, keys, seed=1) / 3
    value, state = randn(batch, time, heads, values, seed=2), randn(batch, heads, keys, values)
    shape = (batch, time, heads, keys) if by_row else (batch, time, heads)
    log_decay = -0.6 * torch.rand(shape, dtype=torch.float64, generator=draw)
    read = write = documents = None
    if delta:
        read = F.normalize(key, dim=-1)
        decay = log_decay.exp() if by_row else log_decay.exp()[..., None]
        beta = torch.rand((batch, time, heads, 1), dtype=torch.float64, generator=draw)
        write = -2 * beta * decay * read
    if with_documents:
        documents = (torch.rand((batch, time), generator=draw) < 0.1).long().cumsum(dim=1)
    inputs = (query, key, value, log_decay, read, write)
    found = matrix_scan(*inputs, state=state, documents=documents, chunk=16)
    expected = recurrence(*inputs, state, documents)
    for mine, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-9, atol=1e-9)


def test_strong_decay_neither_overflows_nor_loses_what_is_near() -> None:
    query, key, value = (randn(1, 200, 1, 4, seed=seed).float() for seed in range(3))
    log_decay = torch.full(
        (1, 200, 1), -30.0
    )  # e^-30 per token: over a chunk fp32 holds it in no form
    output, _ = matrix_scan(query, key, value, log_decay)
    alone = (query * key).sum(dim=-1, keepdim=True) * value
    torch.testing.assert_close(output, alone, rtol=1e-5, atol=1e-6)


def test_autocast_does_not_reach_the_scan() -> None:
    inputs = [randn(1, 70, 2, 4, seed=seed).float() for seed in range(3)]
    log_decay = torch.full((1, 70, 2), -0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, state = matrix_scan(*inputs, log_decay)
    assert output.dtype == state.dtype == torch.float32
    assert torch.equal(output, matrix_scan(*inputs, log_decay)[0])
