"""Runs that are done once: what the store has under a name and its configuration is not computed again."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import active_children, get_context, parent_process
from multiprocessing.process import BaseProcess
from typing import Any

from common.errors import ExperimentError
from common.experiments.catalogue import Catalogue
from common.experiments.names import is_finished
from common.experiments.run import Run, start_experiment
from common.experiments.store import log_path

RESULT = "result"  # the split whose last row is what a run has found
Results = dict[str, float]


@dataclass(frozen=True)
class PaperRun:
    """One run: everything that decides it. `config` is JSON; runs that differ in `seed` alone are a group."""

    paper: str
    variant: str
    config: Mapping[str, Any]
    seed: int

    @property
    def name(self) -> str:
        """Of the experiment. Another configuration has another name, so nothing stale is reused."""
        text = json.dumps(self.config, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        return f"{self.paper}-{self.variant}-{digest}-seed{self.seed}"


Train = Callable[[PaperRun, Run], None]
Planned = Mapping[str, Sequence[PaperRun]]  # the runs of each variant


def run_once(planned: PaperRun, train: Train) -> Results:
    """What `planned` has found, from the store if it is finished there.

    `train` logs to the run it is given, at the end a row of split "result". An unfinished run of the
    name is continued: `run.rows` is then not 0, and `train` calls `run.resume_from` (or
    `Trainer.resume`) with the rows that are still true. Raises ExperimentError when another process
    is running it.
    """
    if not is_finished(planned.name):
        with start_experiment(
            planned.name,
            project=planned.paper,
            config={"variant": planned.variant, **planned.config},
            seed=planned.seed,
            tags=["reproduction"],
            resume=log_path(planned.name).exists(),
            system_metrics_seconds=None,  # they are no results
        ) as run:
            train(planned, run)
    return results_of(planned.name)


def results_of(name: str) -> Results:
    """{metric: value} of the last row of split "result". Raises ExperimentError where there is none."""
    summaries = Catalogue().summaries(name=name)
    found = {s.metric: s.last for s in summaries if s.split == RESULT and s.last is not None}
    if not found:
        raise ExperimentError(
            f"'{name}' is stored without a result",
            f"remove it: python tools/query_experiments.py --delete {name}",
        )
    return found


def run_all(
    runs: Sequence[PaperRun],
    train: Train,
    jobs: int,
    report: Callable[[PaperRun, Results], None] = lambda planned, results: None,
) -> dict[str, Results]:
    """`run_once` of every planned, `jobs` at a time; {name of the experiment: results} in their order.

    Each has one thread, whatever `jobs`: small models gain little from the second, and the number of
    threads decides the last bits. With more than one job each has a process of its own, which ends with this one;
    `train` has to be a function of a module then. `report` hears of every end.
    """
    results: dict[str, Results] = {}
    stored = [planned for planned in runs if is_finished(planned.name)]
    for planned in stored:
        results[planned.name] = results_of(planned.name)
        report(planned, results[planned.name])
    with _ends([planned for planned in runs if planned not in stored], train, jobs) as ends:
        for planned, found in ends:
            results[planned.name] = found
            report(planned, found)
    return {planned.name: results[planned.name] for planned in runs}


@contextmanager
def _ends(
    runs: Sequence[PaperRun], train: Train, jobs: int
) -> Iterator[Iterator[tuple[PaperRun, Results]]]:
    """Runs with their results, in the order in which they end."""
    jobs = min(jobs, len(runs))
    if jobs < 2:
        with _one_thread():
            yield ((planned, run_once(planned, train)) for planned in runs)
        return
    pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_begin_worker)
    try:
        futures = {pool.submit(_run_in_worker, planned, train): planned for planned in runs}
        yield ((futures[future], future.result()) for future in as_completed(futures))
    except BaseException:
        for worker in active_children():
            worker.terminate()  # the Trainer saves before it obeys
        raise
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _begin_worker() -> None:
    import torch

    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """As if stopped by hand: a parent that was killed cannot tell its workers."""
    _parent().join()
    os.kill(os.getpid(), signal.SIGTERM)


def _parent() -> BaseProcess:
    parent = parent_process()
    assert parent is not None  # this is a worker
    return parent


_interrupted = threading.Event()  # in a worker: the pool has handed it the next run already


def _run_in_worker(planned: PaperRun, train: Train) -> Results:
    if _interrupted.is_set():
        raise KeyboardInterrupt
    try:
        return run_once(planned, train)
    except KeyboardInterrupt as interrupt:  # one that can be sent to another process
        _interrupted.set()
        if not _parent().is_alive():
            os._exit(130)  # nobody will ever tell this worker to end
        raise KeyboardInterrupt(str(interrupt)) from None
