"""Peak memory of a training, in each of our settings and in nanoGPT's."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import psutil

from common.errors import ExperimentError
from common.utils.paths import REPOSITORY_ROOT
from tools.benchmarks.plan import Plan
from tools.benchmarks.ratios import Measured, Row, Target, at_most, compared
from tools.benchmarks.results import say
from tools.benchmarks.turns import Contestant, last_line

TARGET = at_most(0.5)
NANOGPT_README = "nanoGPT eager fp32"
_SAMPLE_SECONDS = 0.05
_MIB = 2**20
Peaks = dict[str, float]


def measure_memory(plan: Plan) -> Measured:
    """Measure the last network of the plan, by default the largest. Processes run one by one."""
    network = plan.networks[-1]
    peaks: dict[str, Peaks] = {}
    for name, contestant in _contestants(plan, network).items():
        say(f"memory, {network}: {plan.memory_steps} steps of {name}")
        try:
            peaks[name] = _peaks(contestant)
        except ExperimentError as error:
            if not contestant.may_fail:
                raise
            say(f"memory, {network}: {name} does not run: {error.message}")
    return Measured(_rows(network, peaks), {network: peaks})


def _contestants(plan: Plan, network: str) -> dict[str, Contestant]:
    """Ours by default and with minimal memory; nanoGPT as in its README for CPUs, and in all other modes."""
    steps = plan.memory_steps
    lean = {"precision": "bf16", "compile": "false", "activation_checkpointing": True}
    contestants = {
        "ours": plan.ours(network, steps=steps, precision="auto", compile="auto"),
        "ours, activation checkpointing": plan.ours(network, steps=steps, **lean),
    }
    for precision in ("fp32", "bf16") if plan.nanogpt else ():
        for compiled, mode in (("off", "eager"), ("on", "compiled")):
            options = {"precision": precision, "compile": compiled, "steps": steps}
            contestants[f"nanoGPT {mode} {precision}"] = plan.of_nanogpt(network, **options)
    return contestants


def _peaks(contestant: Contestant) -> Peaks:
    """MiB: `process` is ru_maxrss of the training process, `tree` the peak PSS of it and its child
    processes (Inductor's compilers) together."""
    # Disable cached compilations of earlier processes: compiling takes memory too.
    with (
        tempfile.TemporaryDirectory(prefix="inductor-") as cache,
        tempfile.TemporaryFile("w+") as errors,
    ):
        process = subprocess.Popen(
            contestant.command,
            cwd=REPOSITORY_ROOT,
            env=os.environ | {"TORCHINDUCTOR_CACHE_DIR": cache},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        try:
            with _TreeWatch(process.pid) as watch:
                output, _ = process.communicate()
        finally:
            process.kill()
            process.wait()
        if process.returncode != 0:
            raise ExperimentError(f"a training process failed: {last_line(errors)}")
        message: dict[str, Any] = json.loads(output.splitlines()[-1])
    return {"process": message["peak_mib"], "tree": watch.peak / _MIB}


class _TreeWatch:
    """Peak bytes (PSS) of a process and its descendants, sampled 20 times a second."""

    def __init__(self, pid: int) -> None:
        self.peak = 0.0
        self._root = psutil.Process(pid)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _TreeWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(_SAMPLE_SECONDS):
            with suppress(psutil.Error):
                tree = [self._root, *self._root.children(recursive=True)]
                self.peak = max(self.peak, sum(map(_bytes, tree)))


def _bytes(process: psutil.Process) -> float:
    """PSS, or resident memory if the system has no PSS."""
    try:
        memory = process.memory_full_info()
        return float(getattr(memory, "pss", memory.rss))
    except psutil.Error:
        return 0.0  # ended meanwhile


def _rows(network: str, peaks: Mapping[str, Peaks]) -> list[Row]:
    of_process = {name: found["process"] for name, found in peaks.items()}
    of_tree = {name: found["tree"] for name, found in peaks.items()}
    return [
        *_rows_of(f"{network}: peak memory", of_process),
        *_rows_of(f"{network}: peak memory, compilers counted", of_tree),
    ]


def _rows_of(work: str, mib: Mapping[str, float]) -> list[Row]:
    ours = {name: peak for name, peak in mib.items() if name.startswith("ours")}
    theirs = {name: peak for name, peak in mib.items() if name not in ours}
    leanest = min(ours, key=ours.__getitem__)
    if not theirs:
        return [Row(work, "MiB", ours["ours"]), Row(f"{work} ({leanest})", "MiB", ours[leanest])]

    def row(suffix: str, mine: str, peer: str, target: Target | None = None) -> Row:
        return compared(work + suffix, "MiB", [mib[mine]], peer, [mib[peer]], target)

    leanest_peer = min(theirs, key=theirs.__getitem__)
    rows = [row(f", {name}", "ours", name) for name in theirs if name != NANOGPT_README]
    if NANOGPT_README in theirs:
        rows.insert(0, row(", nanoGPT as in its README for CPUs", "ours", NANOGPT_README, TARGET))
    return [*rows, row(f", both at their leanest ({leanest})", leanest, leanest_peer, TARGET)]
