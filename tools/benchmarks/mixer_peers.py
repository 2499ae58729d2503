"""Our mixers and those of other packages with the same weights: do their outputs agree, and who trains faster?"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Iterator
from math import log2
from time import perf_counter
from typing import TYPE_CHECKING

from common.errors import exit_on_error
from common.utils.malloc import freed_memory_kept
from common.utils.tables import FORMATS, format_rows
from tools.benchmarks.mixers import SHAPE, TRAINED, in_turns, training_step
from tools.benchmarks.results import say

if TYPE_CHECKING:
    import torch

    from tools.benchmarks.mixer_pairs import Pair

# What each is installed with. Their own dependencies stay out: they would bring another torch.
INSTALL = {
    "transformers": "transformers",
    "mambapy": "mambapy",
    "minGRU-pytorch": "minGRU-pytorch",
    "xlstm": "xlstm mlstm_kernels einops",  # see the README for the licence of mlstm_kernels
    "pytorch-tcn": "pytorch-tcn",
}
COLUMNS = [
    *("work", "mixer", "peer", "ours, ms", "peer, ms", "ratio"),
    *("output difference", "largest output", "gradient difference", "largest gradient", "note"),
]
_SLOW_SECONDS = 5.0  # of a call of each: one round is enough
Row = list[str | float | None]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: PYTHONPATH=/tmp/peers python tools/benchmarks/mixer_peers.py --peers mambapy xlstm",
    )
    parser.add_argument(
        "--peers", nargs="+", choices=INSTALL, default=[*INSTALL], metavar="PACKAGE"
    )
    parser.add_argument("--mixers", nargs="+", metavar="NAME", help="only these of ours")
    parser.add_argument("--threads", type=int, help="(default: as PyTorch)")
    parser.add_argument(
        "--rounds", type=int, default=5, help="of which the median counts (default 5)"
    )
    parser.add_argument(
        "--at-most",
        type=float,
        default=20.0,
        help="skip 1 x 2,048 if it may take a peer longer, in seconds (default 20)",
    )
    parser.add_argument("--width", type=int, default=SHAPE["hidden_size"], help="(default 256)")
    parser.add_argument("--format", choices=FORMATS, default="table")
    arguments = parser.parse_args()

    import torch

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    rows: list[Row] = []
    with freed_memory_kept():  # as in training
        for package in arguments.peers:
            try:
                for pair in pairs_of(package, arguments.width):
                    if arguments.mixers is None or pair.name in arguments.mixers:
                        rows += rows_of(pair, arguments.width, arguments.rounds, arguments.at_most)
            except ImportError as error:
                note = f"{error}: pip install --no-deps {INSTALL[package]}"
                rows.append([None, None, package, *[None] * 7, note])
    print(format_rows(COLUMNS, rows, arguments.format))


def pairs_of(package: str, width: int) -> Iterator[Pair]:
    """Raises ImportError where the package is not installed."""
    import torch

    from tools.benchmarks.mixer_pairs import PEERS

    torch.manual_seed(0)
    yield from PEERS[package](width)


def rows_of(pair: Pair, width: int, rounds: int, at_most: float) -> Iterator[Row]:
    """One at 8 x 256 and one at 1 x 2,048."""
    import torch

    say(f"{pair.name}, {pair.peer}")
    _, short, longer = (seconds(pair, torch.randn(1, time, width)) for time in (256, 512, 1024))
    growth = max(longer / short, 1.0)  # autograd over a loop can take quadratic time
    for time, batch in TRAINED.items():
        work = f"training, {batch} x {time}"
        expected = longer * growth ** log2(time / 1024) * batch  # at most
        if expected > at_most:
            note = f"skipped: {longer:.1f} s at 1 x 1,024, estimated {expected:.0f} s here"
            yield [work, pair.name, pair.peer, *[None] * 7, note]
            continue
        x = torch.randn(batch, time, width)
        started = perf_counter()
        agreement = differences(pair, x)
        slow = perf_counter() - started > _SLOW_SECONDS
        contestants = {
            pair.name: training_step(pair.ours, x),
            pair.peer: training_step(pair.theirs, x),
        }
        ours, theirs = in_turns(contestants, 1 if slow else rounds).values()
        times = [round(ours, 2), round(theirs, 2), round(theirs / ours, 2)]
        yield [work, pair.name, pair.peer, *times, *agreement, pair.differs]
        gc.collect()


def seconds(pair: Pair, x: torch.Tensor) -> float:
    """One training step of the peer."""
    started = perf_counter()
    training_step(pair.theirs, x)()
    return perf_counter() - started


def differences(pair: Pair, x: torch.Tensor) -> list[float]:
    """Largest absolute difference of outputs and largest output, and of gradients of x likewise."""
    import torch

    upstream, results = torch.randn_like(x), []
    for module in (pair.ours, pair.theirs):
        leaf = x.clone().requires_grad_()
        output = module(leaf)
        output = output[0] if isinstance(output, tuple) else output
        results.append((output.detach(), *torch.autograd.grad(output, leaf, upstream)))
    found = []
    for ours, theirs in zip(*results, strict=True):
        found += [(ours - theirs).abs().max(), theirs.abs().max()]
    return [float(f"{value:.2g}") for value in found]


if __name__ == "__main__":
    with exit_on_error():
        main()
