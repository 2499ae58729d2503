"""Benchmark our training beside nanoGPT and Hugging Face's Trainer: one machine, one run, one table."""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

from common.errors import ResearchError, exit_on_error
from common.utils.files import write_json_atomic
from common.utils.manifest import create_manifest
from common.utils.tables import FORMATS, format_rows
from tools.benchmarks import huggingface_peer
from tools.benchmarks.networks import NETWORKS
from tools.benchmarks.plan import Plan
from tools.benchmarks.ratios import Measured, as_table
from tools.benchmarks.results import say

# `time-to-loss` is measured by measure_time_to_loss(plan) in measure_time_to_loss.py, and so on.
WORKS = ("time-to-loss", "tokens", "memory", "generation", "overhead", "cuda")
EXAMPLES = """examples:
  python tools/benchmarks/training.py --nanogpt DIR --text tinyshakespeare.txt --json measured.json
  python tools/benchmarks/training.py --nanogpt DIR --only tokens --networks 0.8M --rounds 3
  python tools/benchmarks/training.py --only overhead          (ours alone)

`ratio` is ours divided by theirs: the median over the rounds, and its 95% interval. README.md beside
this file explains each line."""


def main() -> None:
    arguments = _parse()
    with exit_on_error(), tempfile.TemporaryDirectory(prefix="training-benchmark-") as folder:
        plan = _plan(arguments, Path(folder))
        measured: dict[str, Measured] = {}
        failures: dict[str, str] = {}
        for work in [work for work in WORKS if work in (arguments.only or WORKS)]:
            try:
                measured[work] = _measure(work, plan)
            except ResearchError as error:  # keep earlier measurements
                failures[work] = error.message
                say(f"{work}: {error.message}" + f" ({error.hint})" * bool(error.hint))
            if arguments.json:
                _write(arguments.json, measured, failures)
        columns, cells = as_table([row for found in measured.values() for row in found.rows])
        print(format_rows(columns, cells, arguments.format))
        if failures:
            raise ResearchError(f"could not be measured: {', '.join(failures)}")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--nanogpt", type=Path, metavar="DIR", help="a clone; without it, no nanoGPT"
    )
    parser.add_argument("--only", action="append", choices=WORKS, help="may be given several times")
    parser.add_argument(
        "--text", type=Path, metavar="FILE", help="tinyshakespeare, for time-to-loss"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything measured")
    parser.add_argument(
        "--networks", nargs="+", choices=NETWORKS, default=list(Plan.networks), metavar="NAME",
        help=f"of {', '.join(NETWORKS)} (default {' '.join(Plan.networks)})",
    )  # fmt: skip
    for name, what in _NUMBERS.items():
        default = getattr(Plan, name)
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=type(default), default=default, metavar="N",
            help=f"{what} (default {default:,})",
        )  # fmt: skip
    parser.add_argument(
        "--ours-command",
        default="",
        metavar="COMMAND",
        help="of time-to-loss; {python}, {text} and {seed} are filled in",
    )
    parser.add_argument("--no-huggingface", action="store_true", help="without its Trainer")
    parser.add_argument(
        "--huggingface-env",
        type=Path,
        default=huggingface_peer.default_folder(),
        metavar="DIR",
        help="accelerate is installed there, once (default %(default)s)",
    )
    parser.add_argument("--format", choices=FORMATS, default="table")
    arguments = parser.parse_args()
    for name in _NUMBERS:
        if not getattr(arguments, name) > 0:
            parser.error(f"--{name.replace('_', '-')} must be above 0")
    return arguments


# Fields of Plan with a command line option.
_NUMBERS = {
    "rounds": "turns of each contestant",
    "seconds": "of a turn",
    "warmup_seconds": "of each contestant after its first step, before the first turn",
    "agreement_steps": "whose losses are compared with nanoGPT's",
    "repetitions": "whole trainings of time-to-loss",
    "loss": "that time-to-loss trains to, nats per character",
    "memory_steps": "of each training whose memory is watched",
    "overhead_pairs": "pairs of blocks, with and without logging",
    "overhead_steps": "of a block",
}


def _plan(arguments: argparse.Namespace, folder: Path) -> Plan:
    """Raise ResearchError for a missing folder or file."""
    nanogpt: Path | None = arguments.nanogpt
    if nanogpt is not None and not (nanogpt / "model.py").is_file():
        raise ResearchError(
            f"no nanoGPT in {nanogpt}: it has no model.py",
            "git clone https://github.com/karpathy/nanoGPT, and pass that folder",
        )
    if arguments.text is not None and not arguments.text.is_file():
        raise ResearchError(f"no such file: {arguments.text}", "pass tinyshakespeare.txt")
    accelerate = None
    if not arguments.no_huggingface and "tokens" in (arguments.only or WORKS):
        accelerate = huggingface_peer.prepare_accelerate(arguments.huggingface_env.resolve())
    return Plan(
        folder=folder,
        nanogpt=nanogpt.resolve() if nanogpt else None,
        accelerate=accelerate,
        text=arguments.text,
        networks=arguments.networks,
        ours_command=arguments.ours_command,
        **{name: getattr(arguments, name) for name in _NUMBERS},
    )


def _measure(work: str, plan: Plan) -> Measured:
    name = f"measure_{work.replace('-', '_')}"
    module = f"tools.benchmarks.{name}"
    if importlib.util.find_spec(module) is None:
        say(f"{work}: skipped, tools/benchmarks/{name}.py does not exist")
        return Measured()
    measured: Measured = getattr(import_module(module), name)(plan)
    return measured


def _write(path: Path, measured: dict[str, Measured], failures: dict[str, str]) -> None:
    """Rows, all measurements, and the environment: machine, versions, commit."""
    manifest: dict[str, Any] = create_manifest(
        "training-benchmark", project="", config={}, seed=None, tags=[]
    )
    works = {
        work: {"rows": [row._asdict() for row in found.rows], "measured": found.raw}
        for work, found in measured.items()
    }
    write_json_atomic(path, {"manifest": manifest, "works": works, "failures": failures})


if __name__ == "__main__":
    main()
