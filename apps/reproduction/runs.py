"""Cached runs: results in the store with the same name and configuration are not recomputed."""

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
from common.utils.threads import one_thread

RESULT = "result"  # the split whose last row is the result of a run
Results = dict[str, float]


@dataclass(frozen=True)
class PaperRun:
    """Definition of a run. `config` is JSON; runs that differ only in `seed` are a group."""

    paper: str
    variant: str
    config: Mapping[str, Any]
    seed: int

    @property
    def name(self) -> str:
        """Name of the experiment; it depends on the configuration, so nothing stale is reused."""
        text = json.dumps(self.config, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        return f"{self.paper}-{self.variant}-{digest}-seed{self.seed}"


Train = Callable[[PaperRun, Run], None]
Planned = Mapping[str, Sequence[PaperRun]]  # the runs of each variant


def run_once(planned: PaperRun, train: Train) -> Results:
    """Return the result of `planned`, from the store if it is finished.

    `train` logs to the given run, finally a row of split "result". An unfinished run is continued:
    `run.rows` is then not 0, and `train` calls `run.resume_from` (or `Trainer.resume`) with the
    number of valid rows. Raises ExperimentError if another process is running it.
    """
    if not is_finished(planned.name):
        with start_experiment(
            planned.name,
            project=planned.paper,
            config={"variant": planned.variant, **planned.config},
            seed=planned.seed,
            tags=["reproduction"],
            resume=log_path(planned.name).exists(),
            system_metrics_seconds=None,  # not results
        ) as run:
            train(planned, run)
    return results_of(planned.name)


def results_of(name: str) -> Results:
    """{metric: value} of the last row of split "result". Raises ExperimentError if there is none."""
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
    """Call `run_once` for all planned runs, `jobs` at a time; return {experiment: results} in order.

    Each run has one thread for any `jobs`: small models gain little from a second one, and the
    number of threads affects the last bits. With several jobs, each has its own process, which ends
    with this one; `train` must then be a module-level function. `report` is called after every run.
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
    """Yield runs with their results in order of completion."""
    jobs = min(jobs, len(runs))
    if jobs < 2:
        with one_thread():
            yield ((planned, run_once(planned, train)) for planned in runs)
        return
    pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_begin_worker)
    try:
        futures = {pool.submit(_run_in_worker, planned, train): planned for planned in runs}
        yield ((futures[future], future.result()) for future in as_completed(futures))
    except BaseException:
        for worker in active_children():
            worker.terminate()  # the Trainer saves first
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _begin_worker() -> None:
    import torch

    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Stop this worker when its parent was killed."""
    _parent().join()
    os.kill(os.getpid(), signal.SIGTERM)


def _parent() -> BaseProcess:
    parent = parent_process()
    assert parent is not None  # this is a worker
    return parent


_interrupted = threading.Event()  # in a worker that already has the next run


def _run_in_worker(planned: PaperRun, train: Train) -> Results:
    if _interrupted.is_set():
        raise KeyboardInterrupt
    try:
        return run_once(planned, train)
    except KeyboardInterrupt as interrupt:  # a picklable one
        _interrupted.set()
        if not _parent().is_alive():
            os._exit(130)  # nothing else would end this worker
        raise KeyboardInterrupt(str(interrupt)) from None
