"""The scans and their gradients against the recurrences they stand for, token by token in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from common.models.mixers import elementwise_scan as elementwise
from common.models.mixers import matrix_scan as matrix
from common.models.mixers import selective_scan as selective
from common.models.mixers import slstm_scan as slstm
from common.models.mixers.elementwise_scan import elementwise_scan
from common.models.mixers.matrix_scan import matrix_scan
from common.models.mixers.selective_scan import selective_scan
from common.models.mixers.slstm_scan import slstm_scan


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
    for form in (elementwise._scan_in_order, elementwise._scan_in_blocks):
        output = form(decay, inputs)
        gradients.append([output, *torch.autograd.grad(output.square().sum(), (decay, inputs))])
    for mine, other in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.slow
def test_the_elementwise_scan_is_one_operator_to_the_compiler() -> None:
    torch.library.opcheck(
        elementwise._scan_in_order,
        (randn(2, 5, 3).requires_grad_(), randn(2, 5, 3).requires_grad_()),
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
            new = new + torch.einsum("bhw,bhr,bhrv->bhwv", write[:, t], read[:, t], new)
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
        beta = torch.rand((batch, time, heads, 1), dtype=torch.float64, generator=draw)
        write = -2 * beta * read
    if with_documents:
        documents = (torch.rand((batch, time), generator=draw) < 0.1).long().cumsum(dim=1)
    inputs = (query, key, value, log_decay, read, write, state)
    leaves = [x.detach().requires_grad_() for x in inputs if x is not None]
    upstream = randn(*value.shape, seed=3), randn(*state.shape, seed=4)
    results = []
    for compute in (chunked, recurrence):
        given = iter(leaves)
        found = compute(*(None if x is None else next(given) for x in inputs), documents)
        results.append([*found, *torch.autograd.grad(found, leaves, upstream)])
    for mine, reference in zip(*results, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-9, atol=1e-9)


def chunked(*inputs: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    *of_tokens, state, documents = inputs
    return matrix_scan(*of_tokens, state=state, documents=documents, chunk=16)


@pytest.mark.slow
@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("by_row", [False, True])
def test_the_matrix_scan_is_one_operator_to_the_compiler(by_row: bool, delta: bool) -> None:
    batch, time, heads, size = 1, 5, 2, 3
    query, key, value, read, write = (  # not contiguous, as parts of a projection are not
        randn(batch, heads, time, size, seed=seed).transpose(1, 2).requires_grad_()
        for seed in range(5)
    )
    log_decay = -randn(batch, time, heads, size if by_row else 1).abs()
    reads = (read, write) if delta else (None, None)
    state = randn(batch, heads, size, size)
    inputs = (query, key, value, log_decay.requires_grad_(), *reads, state, None, 2)
    torch.library.opcheck(matrix._matrix_chunks, inputs)


@pytest.mark.parametrize("with_documents", [False, True])
@pytest.mark.parametrize("time", [1, 4, 5, 23])
def test_the_selective_scan_is_the_recurrence(
    time: int, with_documents: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, size, channels = 2, 3, 4
    monkeypatch.setattr(selective, "_STATES_OF_BLOCK", 5 * batch * size * channels)
    begins = torch.rand(batch, time) < 0.2 if with_documents else None
    leaves = [
        randn(batch, time, channels),
        randn(batch, time, channels, seed=1).abs(),
        randn(size, channels, seed=2).abs(),
        randn(batch, time, size, seed=3),
        randn(batch, time, size, seed=4),
        randn(batch, size, channels, seed=5),
    ]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    inputs, step, rates, b, c, state = leaves
    hidden, outputs = state, []
    for t in range(time):
        if begins is not None:
            hidden = hidden.masked_fill(begins[:, t, None, None], 0)
        decayed = torch.exp(-step[:, t, None] * rates) * hidden
        hidden = decayed + (step * inputs)[:, t, None] * b[:, t, :, None]
        outputs.append((hidden * c[:, t, :, None]).sum(dim=1))
    expected = torch.stack(outputs, dim=1), hidden
    found = selective_scan(inputs, step, rates, b, c, begins, state)
    upstream = randn(batch, time, channels, seed=6), randn(batch, size, channels, seed=7)
    mine = [*found, *torch.autograd.grad(found, leaves, upstream)]
    reference = [*expected, *torch.autograd.grad(expected, leaves, upstream)]
    for one, other in zip(mine, reference, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_the_selective_scan_is_one_operator_to_the_compiler() -> None:
    sizes = [(2, 5, 1), (2, 5, 1), (2, 3), (3, 5, 1), (3, 5, 1)]  # transposed: not contiguous
    tensors = [
        randn(*size, seed=seed).transpose(0, -1).requires_grad_() for seed, size in enumerate(sizes)
    ]
    state = randn(1, 3, 2).requires_grad_()
    torch.library.opcheck(selective._scan_blocks, (*tensors, None, state))


def paper_slstm(
    gates: torch.Tensor,
    cells: torch.Tensor,
    bias: torch.Tensor,
    recurrent: torch.Tensor,
    hidden: torch.Tensor,
    average: torch.Tensor,
    log_normaliser: torch.Tensor,
    begins: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Equations 8 to 17 of Beck et al. 2024, with the running maximum `scale`."""
    scale, normaliser, cell, outputs = log_normaliser, torch.ones_like(average), average, []
    given = torch.cat([gates, cells], dim=2).permute(1, 3, 0, 2, 4).flatten(3) + bias[:, None]
    for t, of_x in enumerate(given):
        if begins is not None:
            first = begins[:, t, None]
            hidden, cell, normaliser = (x.masked_fill(first, 0) for x in (hidden, cell, normaliser))
        update, forget, candidate, out = (of_x + hidden @ recurrent).chunk(4, dim=-1)
        kept = F.logsigmoid(forget) + scale
        scale = torch.maximum(kept, update)
        cell = (kept - scale).exp() * cell + (update - scale).exp() * candidate.tanh()
        normaliser = (kept - scale).exp() * normaliser + (update - scale).exp()
        hidden = out.sigmoid() * cell / normaliser
        outputs.append(hidden)
    return torch.stack(outputs), cell / normaliser, normaliser.log() + scale


@pytest.mark.parametrize("with_documents", [False, True])
@pytest.mark.parametrize("time", [1, 2, 23])
def test_the_slstm_scan_is_the_recurrence(time: int, with_documents: bool) -> None:
    batch, heads, size = 3, 2, 4
    begins = torch.rand(batch, time) < 0.2 if with_documents else None
    sizes = [(batch, time, 2, heads, size)] * 2 + [(heads, 4 * size), (heads, size, 4 * size)]
    sizes += [(heads, batch, size)] * 3
    leaves = [(2 * randn(*shape, seed=seed)).requires_grad_() for seed, shape in enumerate(sizes)]
    upstream = [randn(time, heads, batch, size), *(randn(*sizes[-1], seed=seed) for seed in (1, 2))]
    results = []
    for compute in (slstm_scan, paper_slstm):
        found = compute(*leaves, begins)
        results.append([*found, *torch.autograd.grad(found, leaves, upstream)])
    for mine, reference in zip(*results, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-9, atol=1e-9)


def test_the_slstm_scan_holds_what_would_overflow() -> None:
    batch, time, heads, size = 1, 40, 1, 2
    gates = 200 * randn(batch, time, 2, heads, size).float()
    cells, bias = randn(batch, time, 2, heads, size, seed=1).float(), torch.zeros(heads, 4 * size)
    zero = torch.zeros(heads, batch, size)
    inputs = [gates.requires_grad_(), cells, bias, torch.zeros(heads, size, 4 * size)]
    threads = torch.get_num_threads()
    output, *_ = slstm_scan(*inputs, zero, zero, zero - torch.inf)
    assert output.detach().abs().max() <= 1
    assert torch.autograd.grad(output.sum(), gates)[0].isfinite().all()
    assert torch.get_num_threads() == threads


@pytest.mark.slow
def test_the_slstm_scan_is_one_operator_to_the_compiler() -> None:
    sizes = [(1, 5, 2, 2, 3), (1, 5, 2, 2, 3), (2, 12), (2, 3, 12), (2, 1, 3), (2, 1, 3), (2, 1, 3)]
    leaves = [randn(*size, seed=seed).requires_grad_() for seed, size in enumerate(sizes)]
    torch.library.opcheck(slstm._scan, (*leaves, None))


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
