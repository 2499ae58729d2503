"""Generate a store of many experiments, with its real layout, for benchmarks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from common.errors import ExperimentError
from common.experiments.recovery import open_catalogue
from common.utils.manifest import ID, create_manifest
from common.utils.paths import get_experiments_dir

if TYPE_CHECKING:
    import pyarrow as pa

ROWS = 1_000  # per experiment; every tenth is of the split val
METRICS = (
    *("loss", "perplexity", "accuracy", "learning_rate", "grad_norm"),
    *("tokens_per_second", "memory_gib", "mfu"),
)
_MINUTES = 9  # duration of each
_BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


def ensure_store(runs: int) -> bool:
    """Create a store of `runs` experiments if there is none; return whether it was created.

    Raises ExperimentError if a store of another size exists.
    """
    found = len(open_catalogue().names())
    if found not in (0, runs):
        raise ExperimentError(
            f"{get_experiments_dir()} holds {found:,} experiments, not {runs:,}",
            f"pass another folder with --store, or --runs {found}",
        )
    if not found:
        _generate(runs)
    return not found


def name_of(number: int) -> str:
    return f"exp_{number:05d}"


def _generate(runs: int) -> None:
    """Write every experiment with the store's own writers, with the maximum number of loose files."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    from common.experiments.packing import LOOSE_LIMIT, PACK_SIZE
    from common.experiments.packs import write_pack
    from common.experiments.parquet import write_table

    columns = (
        *(TextColumn("making experiments"), BarColumn(), MofNCompleteColumn()),
        TimeRemainingColumn(),
    )
    packed = max(0, runs - LOOSE_LIMIT)
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=runs)
        for first in range(0, packed, PACK_SIZE):
            numbers = range(first, min(first + PACK_SIZE, packed))
            write_pack(_members(numbers), METRICS)
            open_catalogue()  # reads the pack, as it would after each in daily use
            progress.advance(task, len(numbers))
        for manifest, table in _members(range(packed, runs)):
            write_table(manifest, table)
            progress.advance(task)
    open_catalogue()


def _members(numbers: Sequence[int]) -> Iterator[tuple[dict[str, Any], pa.Table]]:
    """(manifest, rows) of each experiment."""
    import numpy as np
    import pyarrow as pa

    from common.experiments.parquet import schema_of

    config = {"model": {"num_layers": 4, "width": 128}, "optimizer": {"lr": 1e-3}, "seed": 0}
    manifest = create_manifest("", project="benchmark", config=config, seed=0, tags=["benchmark"])
    steps = np.arange(ROWS)
    splits = pa.array(["val" if step % 10 == 9 else "train" for step in range(ROWS)])
    for number in numbers:
        random = np.random.default_rng(number)
        loss = 4 * np.exp(-steps / 300) + random.random() + random.normal(0, 0.05, ROWS)
        others = [random.random(ROWS) for _ in METRICS[2:]]
        columns = [[name_of(number)] * ROWS, steps, steps / 100, splits, steps * 0.5]
        table = pa.table(
            [pa.array(column) for column in [*columns, loss, np.exp(loss), *others]],
            schema=schema_of(METRICS),
        )
        yield manifest | _facts(number, float(random.choice([1e-3, 2e-3, 4e-3]))), table


def _facts(number: int, lr: float) -> dict[str, Any]:
    """What differs between experiments."""
    started = _BEGIN + timedelta(minutes=number)
    model = {"num_layers": 4, "width": 128}
    return {
        "name": name_of(number),
        ID: f"{number:032x}",
        "status": "finished",
        "started": started.isoformat(),
        "finished": (started + timedelta(minutes=_MINUTES)).isoformat(),
        "duration": _MINUTES * 60.0,
        "config": {"model": model, "optimizer": {"lr": lr}, "seed": number},
        "seed": number,
        "parameters": 800_000,
        "tokens": 1_000_000,
    }
