"""The benchmark of loading: every contestant loads the same weights, and each line has its figures."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_every_contestant_loads_the_same_weights(family: str, tmp_path: Path) -> None:
    from tools.benchmarks.load_turns import CONTESTANTS, touch
    from tools.benchmarks.load_weights import write_model

    folder = tmp_path / family
    write_model(folder, family, 2)
    size = {name: touch(load(folder)) for name, load in CONTESTANTS.items()}
    weights = size["ours"]
    assert size["transformers"] == size["load_file"] == size["load_file_pread"] == weights > 2e5
    assert size["ours_float32"] == size["transformers_float32"] == 2 * weights
    assert (
        weights < size["read_into_one_buffer"] < 1.05 * weights
    )  # the headers are all that is added
    assert size["read_through_a_mebibyte"] == 0


def test_ratios_are_those_of_turns_in_the_same_round() -> None:
    from tools.benchmarks.load_weights import BASELINE, OURS, PEERS, rows_of

    def turn(seconds: float, peak: float) -> dict[str, float]:
        return {"seconds": seconds, "cpu_seconds": 1.0, "peak_bytes": peak, "tensor_bytes": 100.0}

    names = [BASELINE, *OURS, *(peer for peers in PEERS.values() for peer in peers)]
    turns = {name: [turn(1.0, 200.0), turn(10.0, 200.0), turn(2.0, 200.0)] for name in names}
    turns["ours"] = [turn(2.0, 110.0), turn(12.0, 115.0), turn(1.0, 150.0)]
    time, *_ = rows_of("work", turns)
    assert time.ratio is not None and time.ratio.value == 1.2 and time.reached
    memory = next(row for row in rows_of("work", turns) if "/ weights" in row.work)
    assert memory.ours == 1.15 and memory.reached
