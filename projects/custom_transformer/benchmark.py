"""Step time and peak memory of the hand-written backward pass, compared with autograd."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

from common.errors import exit_on_error
from common.utils.tables import format_rows


@dataclass(frozen=True)
class Size:
    vocab_size: int
    num_layers: int
    num_heads: int
    hidden_size: int
    context_length: int
    batch_size: int

    def __str__(self) -> str:
        return (
            f"{self.num_layers} x {self.hidden_size}, {self.batch_size} x {self.context_length} "
            f"tokens, {self.vocab_size:,} words"
        )


SIZES = (
    Size(66, 4, 4, 128, 64, 12),
    Size(2048, 4, 4, 128, 128, 16),
    Size(4096, 6, 6, 384, 256, 8),
    Size(50304, 4, 4, 256, 256, 4),
)
KINDS = ("CustomTransformer", "AutogradTransformer")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="examples:\n  python projects/custom_transformer/benchmark.py --rounds 5",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=5, help="of alternating measurements")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    arguments = parser.parse_args()
    with exit_on_error():
        rows = [_compare(size, arguments.rounds, arguments.device) for size in SIZES]
        columns = ["network and batch", "by hand ms", "autograd ms", "time ratio"]
        columns += ["by hand MB", "autograd MB", "memory ratio"]
        print(format_rows(columns, rows, "table"))
        print("time: fastest step of alternating rounds; memory: peak allocation of a step")


def _compare(size: Size, rounds: int, device: str) -> list[object]:
    times = _alternate(size, rounds, device)
    memory = {kind: _peak_megabytes(kind, size, device) for kind in KINDS}
    own, reference = KINDS
    return [
        str(size),
        round(times[own], 1),
        round(times[reference], 1),
        round(times[own] / times[reference], 2),
        round(memory[own], 1),
        round(memory[reference], 1),
        round(memory[own] / memory[reference], 2),
    ]


def _build(kind: str, size: Size, device: str) -> Callable[[], None]:
    import torch

    from projects.custom_transformer.model import CustomTransformer
    from projects.custom_transformer.reference import AutogradTransformer

    torch.manual_seed(0)
    kinds = {"CustomTransformer": CustomTransformer, "AutogradTransformer": AutogradTransformer}
    model = kinds[kind](
        size.vocab_size, size.num_layers, size.num_heads, size.hidden_size, size.context_length
    ).to(device)
    shape = (size.batch_size, size.context_length)
    ids = torch.randint(size.vocab_size, shape, device=device)

    def step() -> None:
        loss = model.compute_loss(ids, ids)
        loss.backward()
        loss.item()  # waits for the device
        model.zero_grad(set_to_none=True)

    return step


def _alternate(size: Size, rounds: int, device: str) -> dict[str, float]:
    """Milliseconds of the fastest forward and backward pass, alternating, since other load only adds time."""
    steps = {kind: _build(kind, size, device) for kind in KINDS}
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for step in steps.values():
        for _ in range(3):
            step()
    for _ in range(rounds):
        for kind, step in steps.items():
            for _ in range(5):
                started = time.perf_counter()
                step()
                times[kind].append((time.perf_counter() - started) * 1000)
    return {kind: min(values) for kind, values in times.items()}


def _peak_megabytes(kind: str, size: Size, device: str) -> float:
    """Peak memory allocated by one step: activations, gradients, workspace."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    step = _build(kind, size, device)
    step()
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    # The public summary aggregates per operator; only raw events show concurrent allocations.
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in events)) / 1e6


if __name__ == "__main__":
    main()
