"""The memory of a process that logs: `python log_memory.py STEPS` prints JSON.

Rows of 5 metrics go into the store of RESEARCH_ASSETS_DIR; the run is then finished, which turns
its log into a Parquet file.
"""

from __future__ import annotations

import json
import resource
import sys
import time

import psutil

from common.experiments.run import start_experiment
from tools.benchmarks.log_calls import metrics_of

MARKS = (0.01, 0.1, 0.5, 1.0)  # fractions of all steps
_MIB = 2**20


def main() -> None:
    steps = int(sys.argv[1])
    marks = {max(1, round(mark * steps)): 0.0 for mark in MARKS}
    process = psutil.Process()
    run = start_experiment("benchmark")
    for step in range(1, steps + 1):
        run.log(metrics_of(step), step)
        if step in marks:
            marks[step] = process.memory_info().rss / _MIB
    started = time.perf_counter()
    run.finish()
    seconds = time.perf_counter() - started
    print(json.dumps({"resident": marks, "finish_seconds": seconds, "finish_peak": _peak()}))


def _peak() -> float:
    """Peak memory of this process, in MiB."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / _MIB


if __name__ == "__main__":
    main()
