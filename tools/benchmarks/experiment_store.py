"""Benchmark the experiment store beside other trackers: one machine, one run, one table."""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import exit_on_error
from common.utils.tables import FORMATS, format_rows
from tools.benchmarks.generated_store import ensure_store
from tools.benchmarks.measure_logging import measure_logging, measure_memory
from tools.benchmarks.measure_queries import measure_queries
from tools.benchmarks.peer_environment import (
    ABSENT,
    PEERS,
    PeerEnvironment,
    default_folder,
    prepare_peers,
)
from tools.benchmarks.results import Row, as_table, say

EXAMPLES = """examples:
  python tools/benchmarks/experiment_store.py --store /tmp/store10k   (made there, or used again)
  python tools/benchmarks/experiment_store.py --format markdown
  python tools/benchmarks/experiment_store.py --runs 1000 --steps 100000 --no-peers

`ours` is the median of the repetitions, `minimum` their minimum; a peer's cell is its median.
The work alternates, so that other load slows all of it equally. README.md beside this file
explains each line."""


def main() -> None:
    arguments = _parse()
    with exit_on_error():
        columns, rows = as_table(_measure(arguments))
        print(format_rows(columns, rows, arguments.format))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    numbers = {
        "runs": (10_000, "experiments in the store"),
        "steps": (1_000_000, "logged by the process whose memory is watched"),
        "calls": (200_000, "of run.log in each round; of slow peers fewer"),
        "repetitions": (15, "of each cold process"),
    }
    for name, (default, what) in numbers.items():
        described = f"{what} (default {default:,})"
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=described)
    parser.add_argument(
        "--store", type=Path, metavar="DIR", help="create the store there, or reuse an existing one"
    )
    parser.add_argument("--no-peers", action="store_true", help="measure ours only")
    parser.add_argument(
        "--peers-env",
        type=Path,
        default=default_folder(),
        metavar="DIR",
        help="the peers are installed there, once (default %(default)s)",
    )
    parser.add_argument("--format", choices=FORMATS, default="table")
    arguments = parser.parse_args()
    for name in numbers:
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(arguments, name)}")
    return arguments


def _measure(arguments: argparse.Namespace) -> list[Row]:
    peers = None if arguments.no_peers else prepare_peers(arguments.peers_env.resolve())
    with _store_folder(arguments.store) as store:
        os.environ["RESEARCH_ASSETS_DIR"] = str(store)
        say(f"a store of {arguments.runs:,} experiments in {store}")
        ensure_store(arguments.runs)
        rows = measure_queries(arguments.runs, arguments.repetitions, peers)
    rows += measure_logging(arguments.calls, peers)
    rows += measure_memory(arguments.steps)
    return [*rows, _versions(peers)] if peers else rows


@contextmanager
def _store_folder(given: Path | None) -> Iterator[Path]:
    """The folder `given`, or a temporary one."""
    folder = given or Path(tempfile.mkdtemp(prefix="experiment-store-"))
    try:
        yield folder.expanduser().resolve()
    finally:
        if given is None:
            shutil.rmtree(folder)


def _versions(peers: PeerEnvironment) -> Row:
    for package, reason in peers.missing.items():
        say(f"{package} cannot be installed: {reason}")
    versions = {
        logger: peers.versions.get(package, ABSENT)
        for package, loggers in PEERS.items()
        for logger in loggers
    }
    return Row("version", "", peers=versions)


if __name__ == "__main__":
    main()
