"""Benchmark data preparation, loading and vocabulary training beside common libraries: one run, one table."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common.errors import ResearchError, exit_on_error
from common.utils.files import write_json_atomic
from common.utils.manifest import create_manifest
from common.utils.paths import REPOSITORY_ROOT
from common.utils.tables import FORMATS, format_rows
from tools.benchmarks.ratios import (
    Measured,
    Row,
    as_table,
    at_least,
    at_most,
    compared,
    limited,
)
from tools.benchmarks.results import say

EXAMPLES = """examples:
  python tools/benchmarks/data.py                                   (10 minutes, 22 GB of disk)
  python tools/benchmarks/data.py --only prepare --text corpus.txt --rounds 3
  python tools/benchmarks/data.py --only loader --loader-gigabytes 1

The text are the Python files of this environment, a document each, repeated as needed."""
WORKS = ("prepare", "loader", "vocabulary")


def main() -> None:
    arguments = _parse()
    with (
        exit_on_error(),
        tempfile.TemporaryDirectory(prefix="data-benchmark-", dir=arguments.folder) as name,
    ):
        folder = Path(name)
        measured: dict[str, Measured] = {}
        for work in [work for work in WORKS if work in (arguments.only or WORKS)]:
            measured[work] = globals()[f"measure_{work}"](arguments, folder)
            if arguments.json:
                _write(arguments.json, measured)
        columns, cells = as_table([row for found in measured.values() for row in found.rows])
        print(format_rows(columns, cells, arguments.format))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", choices=WORKS, help="may be given several times")
    parser.add_argument("--megabytes", type=int, default=200, help="of text (default 200)")
    parser.add_argument("--text", type=Path, help="a JSONL file of documents to use instead")
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument(
        "--loader-gigabytes", type=float, default=10.0, help="of tokens (default 10)"
    )
    parser.add_argument("--batches", type=int, default=300, help="of the loader (default 300)")
    parser.add_argument(
        "--rounds", type=int, default=2, help="turns of each contestant (default 2)"
    )
    parser.add_argument("--folder", type=Path, help="for what is written (default: the system's)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything measured")
    parser.add_argument("--format", choices=FORMATS, default="table")
    return parser.parse_args()


def measure_prepare(arguments: argparse.Namespace, folder: Path) -> Measured:
    """Text to token files: whole processes without imports, with an existing vocabulary."""
    text = _text(arguments, folder)
    size = _megabytes(text)
    tokenizer = folder / "tokenizer.json"
    _turn("learn", folder, text=text, tokenizer=tokenizer, vocab_size=arguments.vocab_size)
    seconds: dict[str, list[float]] = {}
    memory: dict[str, list[float]] = {}
    digests: dict[str, set[str]] = {}
    for round_ in range(arguments.rounds):
        for name in ("ours", "encode_batch_fast", "datasets"):
            say(f"prepare: round {round_ + 1} of {arguments.rounds}, {name}")
            found = _turn(f"prepare_{name}", folder, text=text, tokenizer=tokenizer)
            seconds.setdefault(name, []).append(found["seconds"])
            memory.setdefault(name, []).append(found["megabytes"])
            digests.setdefault(name, set()).add(found["sha256"])
    same = len(set.union(*digests.values())) == 1
    speed = {name: [size / s for s in found] for name, found in seconds.items()}
    title = f"prepare {size:.0f} MB, {arguments.vocab_size:,} words"
    rows = [
        compared(
            title,
            "MB/s",
            speed["ours"],
            "tokenizers, encode_batch_fast",
            speed["encode_batch_fast"],
            at_least(3),
        ),
        compared(
            title,
            "MB/s",
            speed["ours"],
            "datasets.map(num_proc=2), saved",
            speed["datasets"],
            at_least(6),
        ),
        limited("most memory of our process", "MB", max(memory["ours"]), at_most(600)),
        Row("the ids of all three are the same (1: yes)", "", float(same)),
    ]
    if not same:
        raise ResearchError("the contestants returned different ids", f"they are {digests}")
    return Measured(rows, {"seconds": seconds, "megabytes": memory})


def measure_loader(arguments: argparse.Namespace, folder: Path) -> Measured:
    """Random batches of 64 x 1,024 from a large token file, compared with torch's DataLoader."""
    tokens = int(arguments.loader_gigabytes * 1e9 / 2)
    found: dict[str, list[float]] = {}
    for round_ in range(arguments.rounds):
        for name in ("ours", "datasets"):
            say(f"loader: round {round_ + 1} of {arguments.rounds}, {name}")
            result = _turn(f"load_{name}", folder, tokens=tokens, batches=arguments.batches)
            found.setdefault(name, []).append(result["milliseconds"])
    rows = [
        compared(
            f"a batch of 64 x 1,024 from {arguments.loader_gigabytes:g} GB", "ms", found["ours"],
            "DataLoader over a dataset", found["datasets"], at_most(0.2),
        ),
        limited("that is, the slowest turn", "ms", max(found["ours"]), at_most(1)),
    ]  # fmt: skip
    return Measured(rows, {"milliseconds": found})


def measure_vocabulary(arguments: argparse.Namespace, folder: Path) -> Measured:
    """Learning byte-level merges from the text, compared with a direct call of the library."""
    text = _text(arguments, folder)
    found: dict[str, list[float]] = {}
    for round_ in range(arguments.rounds):
        for name in ("ours", "library"):
            say(f"vocabulary: round {round_ + 1} of {arguments.rounds}, {name}")
            result = _turn(
                "learn" if name == "ours" else "learn_library", folder,
                text=text, tokenizer=folder / f"{name}.json", vocab_size=arguments.vocab_size,
            )  # fmt: skip
            found.setdefault(name, []).append(result["seconds"])
    title = f"learn {arguments.vocab_size:,} words from {_megabytes(text):.0f} MB"
    return Measured(
        [
            compared(
                title,
                "s",
                found["ours"],
                "tokenizers, called directly",
                found["library"],
                at_most(1.05),
            )
        ],
        {"seconds": found},
    )


def _turn(work: str, folder: Path, **arguments: Any) -> dict[str, Any]:
    """Run one turn of one contestant in a new process. Raises ResearchError if it fails."""
    command = [sys.executable, "-m", "tools.benchmarks.data_turns", work, str(folder)]
    command += [f"{key}={value}" for key, value in arguments.items()]
    environment = os.environ | {
        "RESEARCH_ASSETS_DIR": str(folder / "assets"),
        "TOKENIZERS_PARALLELISM": "true",
    }
    result = subprocess.run(
        command, cwd=REPOSITORY_ROOT, env=environment, capture_output=True, text=True
    )
    if result.returncode != 0:
        raise ResearchError(f"{work} failed: {result.stderr.strip()[-500:]}")
    answer: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return answer


def _text(arguments: argparse.Namespace, folder: Path) -> Path:
    """JSON lines with a document each."""
    if arguments.text is not None:
        if not arguments.text.is_file():
            raise ResearchError(f"no such file: {arguments.text}", "pass a JSONL file, or none")
        return Path(arguments.text).resolve()
    path = folder / "text.jsonl"
    if not path.exists():
        say(f"writing {arguments.megabytes} MB of text")
        _turn("write_text", folder, text=path, megabytes=arguments.megabytes)
    return path


def _megabytes(text: Path) -> float:
    """Size of the UTF-8 text."""
    with text.open(encoding="utf-8") as file:
        return sum(len(json.loads(line)["text"].encode()) for line in file) / 1e6


def _write(path: Path, measured: dict[str, Measured]) -> None:
    manifest = create_manifest("data-benchmark", project="", config={}, seed=None, tags=[])
    works = {
        work: {"rows": [row._asdict() for row in found.rows], "measured": found.raw}
        for work, found in measured.items()
    }
    write_json_atomic(path, {"manifest": manifest, "works": works})


if __name__ == "__main__":
    main()
