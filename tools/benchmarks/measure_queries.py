"""Lists, rankings and SQL over a large store, and MLflow's search beside them."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from tools.benchmarks.generated_store import ROWS, name_of
from tools.benchmarks.peer_environment import ABSENT, PeerEnvironment, peer_variables
from tools.benchmarks.processes import run_process, time_processes
from tools.benchmarks.results import Cell, Row, Spread, limited, more_than, say, spread

SEARCHED_RUNS = 1_000  # in MLflow, where more take minutes to create
_SCAN = "SELECT experiment_name, MIN(perplexity) FROM experiments GROUP BY experiment_name"
_SEARCH = Path(__file__).with_name("search_mlflow.py")


def measure_queries(runs: int, repetitions: int, peers: PeerEnvironment | None) -> list[Row]:
    """Queries to the store of RESEARCH_ASSETS_DIR, mostly by cold processes."""
    say(f"queries by cold processes, {repetitions} of each in turn")
    times = time_processes(_commands(runs), repetitions, os.environ)
    listed = more_than(times["list"], times["nothing"])
    best = more_than(times["best"], times["nothing"])
    curve = more_than(times["curve"], times["duckdb"])
    scan = _time_scan(repetitions)
    searched = _measure_mlflow(repetitions, peers) if peers else {}
    rows = [
        Row("empty Python process", "ms", *spread(times["nothing"])),
        limited(f"--list of {runs:,}, cold, beyond that", "ms", listed, 60),
        limited(f"--best of {runs:,}, cold, beyond that", "ms", best, 60, searched),
        Row("Python process that imports duckdb", "ms", *spread(times["duckdb"])),
        limited("one run's curve by SQL, cold, beyond that", "ms", curve, 100),
        limited(f"scan of all {runs * ROWS:,} rows, in process", "ms", scan, 300),
    ]
    if isinstance(search := searched.get("mlflow"), float):
        work = f"--best: MLflow's search of {SEARCHED_RUNS:,} runs, times ours of {runs:,}"
        times_ours = search / best.median
        rows.insert(3, Row(work, "x", times_ours, None, ">= 50", times_ours >= 50))
    return rows


def _commands(runs: int) -> dict[str, list[str]]:
    python, query = sys.executable, [sys.executable, "tools/query_experiments.py"]
    curve = f"""SELECT step, loss FROM experiments
        WHERE experiment_name = '{name_of(runs // 2)}' AND split = 'train' ORDER BY step"""
    return {
        "nothing": [python, "-c", "pass"],
        "list": [*query, "--list"],
        "best": [*query, "--best", "perplexity", "--top", "5"],
        "duckdb": [python, "-c", "import duckdb"],
        "curve": [*query, "--sql", curve, "--format", "csv"],
    }


def _time_scan(repetitions: int) -> Spread:
    from common.experiments.sql import query_rows

    times = []
    for _ in range(repetitions + 1):
        started = time.perf_counter()
        query_rows(_SCAN)
        times.append(1e3 * (time.perf_counter() - started))
    return spread(times[1:])


def _measure_mlflow(repetitions: int, peers: PeerEnvironment) -> Mapping[str, Cell]:
    """Time of a search by a cold process minus an empty one, with the faster of MLflow's two APIs."""
    if "mlflow" not in peers.versions:
        return {"mlflow": ABSENT}
    python, variables = str(peers.python), peer_variables()
    with tempfile.TemporaryDirectory() as folder:
        say(f"MLflow's search: making {SEARCHED_RUNS:,} runs")
        search = [python, str(_SEARCH), folder, str(SEARCHED_RUNS)]
        run_process([*search, "fill"], variables)
        ways = {way: [*search, way] for way in ("client", "frame")}
        say("MLflow's search by cold processes")
        commands = {"nothing": [python, "-c", "pass"], **ways}
        times = time_processes(commands, repetitions, variables)
    return {"mlflow": min(more_than(times[way], times["nothing"]).median for way in ways)}
