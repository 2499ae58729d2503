"""Prune and quantise a trained run; report loss, size and speed of the new experiment."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from apps.export.config import Pruning
from common.errors import ConfigError, exit_on_error
from common.models.quantization import GROUP_SIZES, Quantization
from common.training.trained_run import load_run
from common.utils.tables import format_rows

if TYPE_CHECKING:
    from apps.export.compress import Measured

EXAMPLES = """examples:
  python tools/compress.py --name exp_001 --quantize int8
  python tools/compress.py --name exp_001 --quantize int4 --group-size 128
  python tools/compress.py --name exp_001 --prune magnitude=0.5
  python tools/compress.py --name exp_001 --prune neurons=0.25 heads=0.25 --quantize int8 --to small

prunings, each with the share to remove:
  magnitude, global_magnitude  set the smallest weights of each layer, or of all together, to zero;
                               the file size does not change
  heads, neurons               remove those with the smallest norm from a Decoder, which shrinks it

The result is an experiment with the tag compressed:EXPERIMENT, to evaluate and sample like any other.
Speed is that of greedy generation of one text on this machine."""


def main() -> None:
    arguments = _parser().parse_args()
    with exit_on_error():
        prunings = [Pruning.parse(text) for text in arguments.prune]
        quantization = None
        if arguments.quantize is not None:
            quantization = Quantization(arguments.quantize, arguments.group_size)
        if not prunings and quantization is None:
            raise ConfigError("nothing to do", "add --quantize int8, or --prune neurons=0.25")
        run = load_run(arguments.name, arguments.checkpoint)
        from apps.export.compress import compress_run

        to = arguments.to or _default_name(arguments.name, prunings, quantization)
        before, after = compress_run(
            run,
            new_name=to,
            prunings=prunings,
            quantization=quantization,
        )
        print(describe(arguments.name, before, to, after))
        print(f"\nnext  python projects/{run.project}/sample.py --name {to}")


def describe(name: str, before: Measured, to: str, after: Measured) -> str:
    """Table of both experiments, and their ratio."""
    columns = ["experiment", "loss", "bits per byte", "MB", "tokens per second"]
    values = [
        (one.loss, one.bits_per_byte, one.megabytes, one.tokens_per_second)
        for one in (before, after)
    ]
    ratios = [now / was if was else None for was, now in zip(*values, strict=True)]
    rows: list[list[object]] = [
        [label, *(None if value is None else round(value, 4) for value in line)]
        for label, line in zip((name, to, "ratio"), (*values, ratios), strict=True)
    ]
    return format_rows(columns, rows, "table")


def _default_name(name: str, prunings: list[Pruning], quantization: Quantization | None) -> str:
    """exp_001_neurons25_int8"""
    parts = [f"{pruning.kind}{100 * pruning.share:g}" for pruning in prunings]
    return "_".join([name, *parts, *([quantization.kind] if quantization else [])])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--name", required=True, metavar="EXPERIMENT")
    add(
        "--prune",
        nargs="+",
        action="extend",
        default=[],
        metavar="KIND=SHARE",
        help="applied in this order",
    )
    add("--quantize", choices=["int8", "int4"], help="after pruning")
    add(
        "--group-size",
        type=int,
        default=32,
        choices=GROUP_SIZES,
        help="int4 weights per scale (default 32)",
    )
    add(
        "--to",
        metavar="NAME",
        help="name of the new experiment (default: EXPERIMENT_int8 and so on)",
    )
    add("--checkpoint", default="best", help="best (default), last, or a step such as 500")
    return parser


if __name__ == "__main__":
    main()
