"""Cost of run.log beside the peers' calls, and memory of a long logging process."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import median

from common.errors import ExperimentError
from tools.benchmarks.peer_environment import ABSENT, PEERS, PeerEnvironment, peer_variables
from tools.benchmarks.processes import run_process
from tools.benchmarks.results import Cell, Row, limited, say, spread

ROUNDS = 5
# Calls per round relative to ours: slow loggers get fewer, so that all take seconds.
_PARTS = {
    **{"mlflow": 0.0015, "mlflow_async": 0.0015, "mlflow_files": 0.02},
    **{"trackio": 1.0, "wandb": 0.1, "tensorboard": 0.1, "aim": 0.03},
}
_TIMES_CHEAPER = {
    **{"mlflow": 20, "mlflow_async": 20, "mlflow_files": 20},
    **{"trackio": 3, "wandb": 3},
}
_FLAT_MIB = 5.0
_SCRIPT = Path(__file__).with_name("log_calls.py")
Times = dict[str, float]  # output of log_calls.py


def measure_logging(calls: int, peers: PeerEnvironment | None) -> list[Row]:
    """Log rows of 5 metrics with run.log and each peer, in alternating processes."""
    counts, absent = {"ours": calls}, dict[str, Cell]()
    for package, loggers in PEERS.items() if peers else ():
        for logger in loggers:
            if peers and package in peers.versions:
                counts[logger] = max(200, round(_PARTS[logger] * calls))
            else:
                absent[logger] = ABSENT
    found: dict[str, list[Times]] = {logger: [] for logger in counts}
    for number in range(ROUNDS):
        say(f"logging, round {number + 1} of {ROUNDS}")
        for logger in [logger for logger in counts if logger not in absent]:
            try:
                found[logger].append(_time_logger(logger, counts[logger], peers))
            except ExperimentError as error:
                if logger == "ours":
                    raise
                say(f"{logger}: {error.message}")
                absent[logger] = "fails"
    return _rows(counts, found, absent)


def _time_logger(logger: str, calls: int, peers: PeerEnvironment | None) -> Times:
    python, variables = sys.executable, dict(os.environ)
    if peers is not None and logger != "ours":
        python, variables = str(peers.python), peer_variables()
    with tempfile.TemporaryDirectory() as folder:
        output = run_process([python, str(_SCRIPT), logger, str(calls), folder], variables)
    times: Times = json.loads(output.splitlines()[-1])
    return times


def _rows(
    counts: Mapping[str, int], found: Mapping[str, list[Times]], absent: Mapping[str, Cell]
) -> list[Row]:
    def medians(key: str) -> dict[str, float]:
        measured = {n: times for n, times in found.items() if n != "ours" and n not in absent}
        return {name: median(t[key] for t in times) for name, times in measured.items()}

    ours = {key: spread([t[key] for t in found["ours"]]) for key in ("call", "safe", "finish")}
    call, safe, finish = (medians(key) for key in ours)
    others = {name: count for name, count in counts.items() if name != "ours"}
    rows = [
        Row(f"run.log: calls in each of {ROUNDS} rounds", "", counts["ours"], peers=others),
        limited("run.log of 5 metrics, per call", "us", ours["call"], 30, {**call, **absent}),
        Row("... until a kill loses none", "us", *ours["safe"], peers={**safe, **absent}),
        Row("... until finish() returns", "us", *ours["finish"], peers={**finish, **absent}),
    ]
    if others:
        rows.append(_times_ours("times ours, per call", call, ours["call"].median, absent))
        work = "times ours, until a kill loses none"
        rows.append(_times_ours(work, safe, ours["safe"].median, absent))
    return rows


def _times_ours(
    work: str, peers: Mapping[str, float], ours: float, absent: Mapping[str, Cell]
) -> Row:
    times = {name: value / ours for name, value in peers.items()}
    met = all(times[name] >= least for name, least in _TIMES_CHEAPER.items() if name in times)
    limit = "mlflow >= 20, trackio and wandb >= 3"
    return Row(work, "x", None, None, limit, met, {**times, **absent})


def measure_memory(steps: int) -> list[Row]:
    """Memory of a process that logs a long run, and the time to finish it."""
    say(f"memory over {steps:,} steps")
    with tempfile.TemporaryDirectory() as folder:
        variables = os.environ | {"RESEARCH_ASSETS_DIR": folder}
        command = [sys.executable, "-m", "tools.benchmarks.log_memory", str(steps)]
        result = json.loads(run_process(command, variables))
    resident: dict[str, float] = result["resident"]
    values = list(resident.values())
    growth = spread([values[-1] - values[0]])
    return [
        *(Row(f"memory after {int(n):,} steps", "MiB", mib) for n, mib in resident.items()),
        limited("its growth from the first to the last", "MiB", growth, _FLAT_MIB),
        Row(f"finishing a run of {steps:,} steps", "s", result["finish_seconds"]),
        Row("the most memory meanwhile", "MiB", result["finish_peak"]),
    ]
