"""Verify an export: load it in another program and compare logits on a few tokens.

expected = probe(model)
check_logits(expected, [reader(ids) for ids, _ in expected], "f32", "ONNX Runtime")
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from common.errors import ModelError
from common.models.base import BaseLanguageModel

_LENGTHS = (1, 5, 33)
# Maximum error relative to the spread of the logits of a text (root mean squares). A reader with
# another formula has errors of 0.1 and more; rounding includes the reader's own products.
TOLERANCES = {"f32": 2e-3, "f16": 2e-2, "bf16": 0.1, "q8_0": 0.1}
_LEAST_SPREAD = 1e-3  # for nearly constant logits

Probe = tuple[torch.Tensor, torch.Tensor]


@torch.no_grad()
def probe(model: BaseLanguageModel, leave: int = 0) -> list[Probe]:
    """Create a few texts, (2, time) int64, with the logits of `model`, on the CPU.

    The logits, (2, time, vocab_size), are computed in float32 from the model's weights. `leave` is
    the number of free tokens in the context. Raises ModelError if the logits are NaN.
    """
    generator = torch.Generator().manual_seed(0)
    longest = (model.context_limit or max(_LENGTHS) + leave) - leave
    probes = []
    with _in_float32(model) as exact:
        for length in sorted({min(length, longest) for length in _LENGTHS}):
            ids = torch.randint(0, model.vocab_size, (2, length), generator=generator)
            if (end := getattr(model, "end_of_text", None)) is not None:
                # The model masks across documents, readers do not: use a single document.
                ids[ids == end] = (end + 1) % model.vocab_size
            logits = exact(ids.to(model.device))["logits"].float().cpu()
            if logits.isnan().any():
                raise ModelError(
                    "the model's logits are NaN",
                    "training has diverged; export an earlier checkpoint",
                )
            probes.append((ids, logits))
    return probes


@contextmanager
def _in_float32(model: BaseLanguageModel) -> Iterator[BaseLanguageModel]:
    """`model` in evaluation mode, or a copy if its weights have another dtype."""
    if any(p.is_floating_point() and p.dtype != torch.float32 for p in model.parameters()):
        yield copy.deepcopy(model).float().eval()
        return
    was_training = model.training
    try:
        yield model.eval()
    finally:
        model.train(was_training)


def check_logits(
    probes: Sequence[Probe],
    found: Sequence[torch.Tensor],
    dtype: str,
    reader: str,
    *,
    has_experts: bool = False,
) -> None:
    """Raise ModelError unless `reader` reproduced the logits of `probes`.

    Args:
        found: for each probe (texts, positions, vocab_size), of its last positions.
        dtype: of the written weights, one of TOLERANCES.
        has_experts: rounding may select another expert for a token, which changes its logits and those
            after it: half of the tokens suffice.
    """
    for (ids, expected), logits in zip(probes, found, strict=True):
        wanted = expected[:, expected.shape[1] - logits.shape[1] :]
        if wanted.shape != logits.shape:
            raise _refusal(reader, f"has logits of the shape {tuple(logits.shape)}")
        if has_experts:
            pairs = zip(logits.flatten(0, 1), wanted.flatten(0, 1), strict=True)
            errors = [relative_error(token, exact) for token, exact in pairs]
            error = float(torch.tensor(errors).median())
        else:
            error = relative_error(logits, wanted)
        if not error <= TOLERANCES[dtype]:  # NaN too
            where = f"of {ids.shape[1]} tokens the logits differ by {error:.1%} of their spread"
            raise _refusal(reader, f"computes different logits: {where}")


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Root mean square of the difference over that of the expected logits around their means."""
    known = expected.isfinite()  # impossible tokens have -inf
    if not torch.equal(known, found.isfinite()):
        return float("nan")
    found, expected = found.double()[known], expected.double()[known]
    spread = (expected - expected.mean()).square().mean().sqrt()
    return float((found - expected).square().mean().sqrt() / spread.clamp(min=_LEAST_SPREAD))


def run_reader(reader: str, compute: Callable[[], Any]) -> Any:
    """Return the result of `compute`; turn any exception into a ModelError."""
    try:
        return compute()
    except Exception as error:  # readers have their own exceptions
        raise _refusal(reader, f"rejects it: {' '.join(str(error).split())[:300]}") from error


def _refusal(reader: str, reason: str) -> ModelError:
    return ModelError(
        f"nothing was written: {reader} {reason}",
        "this is a bug in the export or in that version of the reader; please report it",
    )
