"""MLflow's own search, in its interpreter: `python search_mlflow.py FOLDER RUNS fill|client|frame`.

`fill` creates RUNS runs with the last value of 8 metrics each, all that a search reads. The others
print the 5 best in a cold process: MlflowClient.search_runs and, with pandas, mlflow.search_runs.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
METRICS = (
    *("loss", "perplexity", "accuracy", "learning_rate", "grad_norm"),
    *("tokens_per_second", "memory_gib", "mfu"),
)
ORDER = ["metrics.perplexity ASC"]


def main() -> None:
    folder, runs, action = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    uri = f"sqlite:///{folder}/mlflow.db"
    if action == "frame":
        import mlflow

        mlflow.set_tracking_uri(uri)
        print(mlflow.search_runs(experiment_ids=["0"], order_by=ORDER, max_results=5))
        return
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    if action == "fill":
        _fill(client, runs)
        return
    for run in client.search_runs(["0"], order_by=ORDER, max_results=5):
        print(run.info.run_name, run.data.metrics["perplexity"])


def _fill(client: MlflowClient, runs: int) -> None:
    from mlflow.entities import Metric

    for number in range(runs):
        run_id = client.create_run("0", run_name=f"exp_{number:05d}").info.run_id
        values = [(1 + (number * 7919 + i) % runs) / runs for i in range(len(METRICS))]
        metrics = [Metric(name, v, 0, 999) for name, v in zip(METRICS, values, strict=True)]
        client.log_batch(run_id, metrics)
        client.set_terminated(run_id)


if __name__ == "__main__":
    main()
