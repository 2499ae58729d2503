"""What each mixer costs beside attention of the same width: training and generation."""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Callable, Iterator
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

from common.errors import exit_on_error
from common.models.registry import MIXERS
from common.utils.malloc import freed_memory_kept
from common.utils.tables import FORMATS, format_rows
from tools.benchmarks.results import say

if TYPE_CHECKING:
    import torch
    from torch import nn

SHAPE: dict[str, Any] = {"hidden_size": 256, "num_heads": 4, "positions": "none"}
TRAINED = {256: 8, 2048: 1}  # tokens of a text: texts of a batch
_GENERATED = {"num_layers": 4, "hidden_size": 128, "num_heads": 4, "positions": "none"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python tools/benchmarks/mixers.py --mixers attention mamba2 gated_delta_net --threads 1",
    )
    parser.add_argument("--mixers", nargs="+", choices=MIXERS, default=[*MIXERS], metavar="NAME")
    parser.add_argument("--threads", type=int, help="(default: as PyTorch)")
    parser.add_argument(
        "--rounds", type=int, default=3, help="of which the median counts (default 3)"
    )
    parser.add_argument(
        "--long",
        type=int,
        default=16_384,
        help="tokens before the generated ones, beside 1,024 (default 16384)",
    )
    parser.add_argument("--format", choices=FORMATS, default="table")
    arguments = parser.parse_args()

    import torch

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    names = list(dict.fromkeys(["attention", *arguments.mixers]))
    with freed_memory_kept():  # as in training
        rows = list(training_rows(names, arguments.rounds))
        rows += expert_rows(arguments.rounds)
    rows += generation_rows(names, arguments.rounds, arguments.long)
    columns = ["work", "contestant", "ms", "beside", "ratio"]
    if arguments.format == "json":
        print(json.dumps([dict(zip(columns, row, strict=True)) for row in rows]))
    else:
        print(format_rows(columns, rows, arguments.format))


Row = tuple[str, str, float, str, float]


def in_turns(work: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each, one call of all of them after the other in every round."""
    say(f"{', '.join(work)}")
    times: dict[str, list[float]] = {name: [] for name in work}
    for number in range(rounds + 1):  # the first is not counted
        for name, call in work.items():
            started = perf_counter()
            call()
            if number:
                times[name].append(1e3 * (perf_counter() - started))
    return {name: median(found) for name, found in times.items()}


def beside(work: str, first: str, found: dict[str, float]) -> Iterator[Row]:
    """A row of each, with how many times `first` it takes."""
    for name, time in found.items():
        yield work, name, round(time, 2), first, round(time / found[first], 2)


def training_rows(names: list[str], rounds: int) -> Iterator[Row]:
    """Forward and backward pass of one layer's mixer."""
    import torch

    for time, batch in TRAINED.items():
        x = torch.randn(batch, time, SHAPE["hidden_size"])
        work = {name: training_step(layer(name), x) for name in names}
        yield from beside(f"training, {batch} x {time}", "attention", in_turns(work, rounds))
        gc.collect()


def layer(name: str, **shape: Any) -> nn.Module:
    """A mixer as a Decoder initialises it, as a module of x alone."""
    from torch import nn

    from common.models import Decoder
    from common.models.mixers.base import Positions

    options = {name: {"window": 256}} if name == "local_attention" else {}
    sizes = {**SHAPE, "num_layers": 1, "context_length": 1 << 17, "options": options, **shape}
    mixer = Decoder(8, mixer=name, **sizes).mixers[0]

    class Alone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mixer = mixer

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.mixer(x, Positions())  # type: ignore[no-any-return]  # nn.Module.__call__

    return Alone()


def training_step(module: nn.Module, x: torch.Tensor) -> Callable[[], object]:
    """A call that computes the gradients of inputs and weights."""
    import torch

    leaf = x.clone().requires_grad_()
    upstream = torch.randn_like(x)
    parameters = [leaf, *module.parameters()]

    def step() -> object:
        output = module(leaf)
        output = output[0] if isinstance(output, tuple) else output
        return torch.autograd.grad(output, parameters, upstream, allow_unused=True)

    return step


def expert_rows(rounds: int) -> Iterator[Row]:
    """8 experts of which each token meets 2, and the dense layer of as many active parameters."""
    import torch
    from torch import nn

    from common.models.config import DecoderConfig
    from common.models.feedforwards.base import FeedForward
    from common.models.mixers.base import Positions
    from common.models.registry import feedforward_class

    def feedforward(kind: str) -> nn.Module:
        config = DecoderConfig(hidden_size=256, feedforward=kind, bias=False)
        part = feedforward_class(kind)(config, config.options_of(kind), 0)
        part.reset_parameters(0.02, 0.02)

        class Alone(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.part: FeedForward = part

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.part(x, Positions())  # type: ignore[no-any-return]  # nn.Module.__call__

        return Alone()

    x = torch.randn(8, 256, 256)
    work = {kind: training_step(feedforward(kind), x) for kind in ("swiglu", "moe")}
    yield from beside("training, 8 x 256", "swiglu", in_turns(work, rounds))


def generation_rows(names: list[str], rounds: int, long: int) -> Iterator[Row]:
    """A token of a Decoder of 4 layers of 128, after 1,024 tokens and after `long`."""
    import torch

    from common.models import Decoder

    work: dict[str, Callable[[], object]] = {}
    for before in (1024, long):
        for name in names:
            options = {name: {"window": 256}} if name == "local_attention" else {}
            model = Decoder(
                256, mixer=name, context_length=1 << 18, options=options, **_GENERATED
            ).eval()
            work[f"{name} after {before:,}"] = next_tokens(model, before)
    with torch.inference_mode():
        found = in_turns(work, rounds)
    per_token = {name: time / 16 for name, time in found.items()}
    yield from beside("a generated token, 4 x 128", "attention after 1,024", per_token)


def next_tokens(model: Any, before: int) -> Callable[[], object]:
    """A call that generates 16 tokens, after `before` of them were read."""
    import torch

    reader, cache = model.fast_copy(), model.new_cache(1, before + 4096)
    ids = torch.randint(0, 256, (1, before))
    with torch.inference_mode():
        for part in torch.split(ids, 1024, dim=1):
            reader.next_logits(part, cache)

    def tokens() -> object:
        token = ids[:, -1:]
        for _ in range(16):
            token = reader.next_logits(token, cache).argmax(dim=-1, keepdim=True)
        return token

    return tokens


if __name__ == "__main__":
    with exit_on_error():
        main()
