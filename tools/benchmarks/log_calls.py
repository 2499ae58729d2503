"""The cost of logging one row of 5 metrics: `python log_calls.py LOGGER CALLS FOLDER` prints JSON.

It runs in our interpreter for `ours` and in that of the peers for the others, hence imports nothing
of ours at the top. Each logger is set up as its documentation recommends for speed: MLflow writes
all metrics of a step at once (also without waiting), W&B is offline and leaves the console alone,
Aim takes no system metrics. Ours takes its own as it always does.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

WARM_UP_CALLS = 100


class Logger(NamedTuple):
    """`is_safe` says that a row survives the death of the process as soon as `log` has returned."""

    log: Callable[[dict[str, float], int], object]
    finish: Callable[[], object]
    is_safe: bool


def ours(folder: Path) -> Logger:
    os.environ["RESEARCH_ASSETS_DIR"] = str(folder)
    from common.experiments.run import start_experiment

    run = start_experiment("benchmark")
    return Logger(lambda metrics, step: run.log(metrics, step), run.finish, True)


def mlflow(folder: Path) -> Logger:
    return _mlflow(f"sqlite:///{folder}/mlflow.db", waits=True)


def mlflow_async(folder: Path) -> Logger:
    return _mlflow(f"sqlite:///{folder}/mlflow.db", waits=False)


def mlflow_files(folder: Path) -> Logger:
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"  # since MLflow 3 it has to be asked for
    return _mlflow((folder / "mlruns").as_uri(), waits=True)


def _mlflow(uri: str, waits: bool) -> Logger:
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    import mlflow

    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment("benchmark")
    mlflow.start_run()

    def log(metrics: dict[str, float], step: int) -> None:
        mlflow.log_metrics(metrics, step=step, synchronous=waits)

    def finish() -> None:
        if not waits:
            mlflow.flush_async_logging()
        mlflow.end_run()

    return Logger(log, finish, waits)


def trackio(folder: Path) -> Logger:
    os.environ |= {"TRACKIO_DIR": str(folder), "HF_HUB_OFFLINE": "1"}
    import trackio

    trackio.init(project="benchmark", name="benchmark")
    return Logger(lambda metrics, step: trackio.log(metrics, step=step), trackio.finish, False)


def wandb(folder: Path) -> Logger:
    os.environ["WANDB_MODE"] = "offline"
    import wandb

    settings = wandb.Settings(console="off", silent=True)
    run = wandb.init(project="benchmark", dir=str(folder), settings=settings)
    return Logger(lambda metrics, step: run.log(metrics, step=step), run.finish, False)


def tensorboard(folder: Path) -> Logger:
    from tensorboardX import SummaryWriter

    writer = SummaryWriter(str(folder))

    def log(metrics: dict[str, float], step: int) -> None:
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)

    return Logger(log, writer.close, False)


def aim(folder: Path) -> Logger:
    from aim import Run

    run = Run(
        repo=str(folder),
        system_tracking_interval=None,
        log_system_params=False,
        capture_terminal_logs=False,
    )
    return Logger(lambda metrics, step: run.track(metrics, step=step), run.close, False)


LOGGERS: dict[str, Callable[[Path], Logger]] = {
    function.__name__: function
    for function in (ours, mlflow, mlflow_async, mlflow_files, trackio, wandb, tensorboard, aim)
}


def metrics_of(step: int) -> dict[str, float]:
    loss = 1.0 + 9.0 / (step + 1)
    return {
        "loss": loss,
        "perplexity": loss * 3.0,
        "accuracy": 1.0 / loss,
        "learning_rate": loss * 1e-3,
        "grad_norm": loss * 0.7,
    }


def main() -> None:
    logger = LOGGERS[sys.argv[1]](Path(sys.argv[3]))
    calls = int(sys.argv[2])
    for step in range(WARM_UP_CALLS):
        logger.log(metrics_of(step), step)
    started = time.perf_counter()
    for step in range(WARM_UP_CALLS, WARM_UP_CALLS + calls):
        logger.log(metrics_of(step), step)
    called = time.perf_counter()
    logger.finish()
    finished = time.perf_counter()
    call, finish = (1e6 * (moment - started) / calls for moment in (called, finished))
    print(json.dumps({"call": call, "safe": call if logger.is_safe else finish, "finish": finish}))


if __name__ == "__main__":
    main()
