"""Checks that every mixer must pass: call `check_mixer(MyMixer)` in the test of your own.

They compute in float64, where a difference is an error and not rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from common.models.config import DecoderConfig
from common.models.mixers.base import Mixer, Positions
from common.models.registry import mixer_class

WIDTH = 16
# Around the chunks of the scans and the reach of kernels.
LENGTHS = (1, 2, 3, 15, 16, 17, 63, 64, 65, 130)


def build_mixer(
    mixer: str | type[Mixer], options: Mapping[str, Any] | None = None, seed: int = 0, **shape: Any
) -> Mixer:
    """A mixer in float64 with large random weights, so that every part has an effect.

    Args:
        mixer: name or class.
        options: its options, by name.
        shape: keys of DecoderConfig; by default two heads and a hidden_size of 16.
    """
    cls = mixer_class(mixer) if isinstance(mixer, str) else mixer
    torch.manual_seed(seed)
    shape = {
        "hidden_size": WIDTH,
        "num_heads": 2,
        "positions": "none",
        "context_length": 256,
        **shape,
    }
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # torch.empty is NaN
    try:
        module = cls(DecoderConfig(**shape), cls.Options(**(options or {})), 1)
    finally:
        torch.use_deterministic_algorithms(deterministic)
    module = module.double()
    module.reset_parameters(0.5)
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=0.5)
    for name, parameter in module.named_parameters():
        assert not parameter.isnan().any(), f"reset_parameters leaves {name} uninitialised"
        with torch.no_grad():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return module.eval()


def _inputs(module: Mixer, length: int, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(length)
    dtype = next(module.parameters()).dtype
    return torch.randn(batch, length, WIDTH, dtype=dtype, generator=generator)


def _check_equal(found: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    """Raise AssertionError with the first token, of the second last dimension, that differs."""
    assert found.shape == expected.shape, f"{what}: {found.shape} is not {expected.shape}"
    wrong = ~torch.isclose(found, expected, atol=1e-8, rtol=1e-8)
    if wrong.any():
        token = int(wrong.transpose(-1, -2).flatten(0, -2).any(dim=0).nonzero()[0])
        largest = float((found - expected).abs().max())
        raise AssertionError(f"{what}; first at token {token}, by up to {largest:.1e}")


@torch.no_grad()
def check_pieces(module: Mixer, lengths: Iterable[int] = LENGTHS) -> None:
    """One pass, token by token and random pieces give equal outputs. Passes for a new_state of None."""
    assert type(module).new_state is not Mixer.new_state, (
        "define new_state, the state before the first token, to generate token by token; return None "
        "from it if there is none: generation then reads the whole text for each token"
    )
    if module.new_state(1, 1) is None:
        return
    for length in lengths:
        x = _inputs(module, length)
        whole = module(x, Positions())
        generator = torch.Generator().manual_seed(length)
        cuts = torch.randint(1, max(2, length // 3), (length,), generator=generator).tolist()
        for sizes in ([1] * length, cuts):
            state, parts, start = module.new_state(len(x), length), [], 0
            for size in sizes:
                if start < length:
                    parts.append(module(x[:, start : start + size], Positions(start), state))
                    start += size
            _check_equal(
                torch.cat(parts, dim=1),
                whole,
                f"{length} tokens in pieces of {sizes[:5]} with a state differ from one pass: does forward "
                "read and update the state, and does new_state equal no state",
            )


@torch.no_grad()
def check_documents(module: Mixer, lengths: Iterable[int] = LENGTHS) -> None:
    """Documents in one row give the outputs of each document alone, at any borders."""
    for length in lengths:
        x = _inputs(module, length)
        generator = torch.Generator().manual_seed(length)
        begins = torch.rand(2, length, generator=generator) < 0.1
        begins[0, [at for at in (15, 16, 63, 64, 65, 128) if at < length]] = True  # ends of chunks
        documents = begins.long().cumsum(dim=1)
        mask = (documents[:, :, None] == documents[:, None, :]).tril()[:, None]
        together = module(x, Positions(documents=documents, mask=mask))
        for row in range(2):
            counts = torch.unique_consecutive(documents[row], return_counts=True)[1].tolist()
            alone = [module(part[None], Positions())[0] for part in x[row].split_with_sizes(counts)]
            _check_equal(
                together[row],
                torch.cat(alone),
                f"documents of {counts[:5]} tokens in one row differ from each alone: it sees another "
                "document (where.documents, where.begins(), where.mask)",
            )


@torch.no_grad()
def check_causality(module: Mixer, length: int = 130) -> None:
    """Outputs depend on their own token and on no later one."""
    x = _inputs(module, length)
    before = module(x, Positions())
    without_effect = []
    for changed in (0, 1, 15, 16, 63, 64, 127, length - 1):
        other = x.clone()
        other[:, changed] += 1
        after = module(other, Positions())
        _check_equal(
            after[:, :changed],
            before[:, :changed],
            f"a change of token {changed} changes earlier outputs: the mixer sees the future",
        )
        if torch.equal(after[:, changed], before[:, changed]):
            without_effect.append(changed)
    assert not without_effect, f"tokens {without_effect} have no effect on their own output"


@torch.no_grad()
def check_rows(module: Mixer, length: int = 70) -> None:
    """Rows of a batch are independent."""
    x = _inputs(module, length, batch=3)
    alone = [module(row[None], Positions()) for row in x]
    _check_equal(module(x, Positions()), torch.cat(alone), "a row depends on the other rows")


def check_gradients(module: Mixer, length: int = 20) -> None:
    """Gradients of inputs and parameters equal finite differences, with and without documents."""
    x = _inputs(module, length)
    documents = (torch.arange(length) // 7).expand(2, -1)
    mask = (documents[:, :, None] == documents[:, None, :]).tril()[:, None]
    weights = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1))
    for where in (Positions(), Positions(documents=documents, mask=mask)):
        parameters = dict(module.named_parameters())
        leaves = [x.clone().requires_grad_(), *parameters.values()]
        loss = (module(leaves[0], where) * weights).sum()
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
        for name, leaf, gradient in zip(["x", *parameters], leaves, gradients, strict=True):
            assert gradient is not None, f"{name} has no effect on the output"
            direction = torch.randn_like(leaf) * 1e-5
            with torch.no_grad():
                leaf += direction
                up = (module(leaves[0], where) * weights).sum()
                leaf -= 2 * direction
                down = (module(leaves[0], where) * weights).sum()
                leaf += direction
            expected = (gradient * direction).sum()
            error = float(abs((up - down) / 2 - expected))
            assert (
                error < 1e-5 * float(gradient.norm() * direction.norm()) + 1e-12
            ), f"the gradient of {name} is off by {error:.1e}"


@torch.no_grad()
def check_precision(module: Mixer, length: int = 130) -> None:
    """fp32 is within 1e-4 of float64, and bf16 autocast within 5%."""
    x = _inputs(module, length)
    exact = module(x, Positions())
    scale = float(exact.abs().max())
    single = module.float()
    error = float((single(x.float(), Positions()) - exact).abs().max()) / scale
    assert error < 1e-4, f"fp32 is off by {error:.1e} of the largest output"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        error = float((single(x.float(), Positions()) - exact).abs().mean()) / scale
    module.double()
    assert error < 0.05, f"bf16 is off by {error:.1e} of the largest output, in the mean"


CHECKS: tuple[Callable[[Mixer], None], ...] = (
    check_causality,
    check_pieces,
    check_documents,
    check_rows,
    check_gradients,
    check_precision,
)


def check_mixer(
    mixer: str | type[Mixer], options: Mapping[str, Any] | None = None, **shape: Any
) -> None:
    """Raise AssertionError where a mixer breaks the contract; arguments as of `build_mixer`."""
    for check in CHECKS:
        check(build_mixer(mixer, options, **shape))
