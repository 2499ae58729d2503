"""Find the runs of other trackers in a file or folder, by names and layout."""

from __future__ import annotations

import os
import re
from pathlib import Path

from apps.importing import (
    exported,
    mlflow,
    tables,
    tensorboard,
    wandb,
)
from apps.importing.foreign import ForeignRun
from common.errors import ExperimentError
from common.experiments.store import RUNS_ENDING

_HINT = (
    "supported: TensorBoard event files, W&B folders and .wandb files, MLflow folders (mlruns) and "
    "databases (mlflow.db), .csv, .jsonl and .parquet, and the .json of our own --export"
)
_MLFLOW_RUN_ID = re.compile(r"[0-9a-f]{32}")


def find_runs(source: Path) -> list[ForeignRun]:
    """The runs in `source`, in a fixed order. Raises ExperimentError if there are none."""
    if not source.exists():
        raise ExperimentError(f"no such file or folder: {source}", _HINT)
    source = source.resolve()  # `wandb/latest-run` is a link
    runs = _runs_of_folder(source) if source.is_dir() else _runs_of_file(source)
    if not runs:
        raise ExperimentError(f"found nothing to import in {source}", _HINT)
    return runs


def _runs_of_file(path: Path) -> list[ForeignRun]:
    if tensorboard.is_event_file(path.name):
        return [tensorboard.TensorBoardRun(path, path.parent.name, [("", [path])])]
    if path.suffix == ".wandb":
        return [wandb.WandbRun(path)]
    if path.suffix.lower() in tables.ENDINGS:
        return tables.runs_of_file(path)
    if path.suffix.lower() == exported.ENDING:
        return exported.runs_of_file(path)
    if mlflow.is_database(path):
        return mlflow.runs_of_database(path)
    return []


def _runs_of_folder(root: Path) -> list[ForeignRun]:
    """Find runs of all kinds: a folder may contain `wandb/`, `mlruns/` and event files side by side."""
    runs: list[ForeignRun] = []
    event_files: dict[Path, list[Path]] = {}
    for folder, subfolders, names in os.walk(root):
        path = Path(folder)
        # Hidden folders are caches and MLflow's .trash.
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        if mlflow.is_run_folder(path):
            runs.append(mlflow.MlflowFolderRun(path))
            subfolders.clear()
            continue
        if "meta.yaml" in names and "models" in subfolders:
            subfolders.remove("models")  # logged models look like runs
        if "mlflow.db" in names:
            runs += mlflow.runs_of_database(path / "mlflow.db")
        if _MLFLOW_RUN_ID.fullmatch(path.name) and "artifacts" in subfolders:
            subfolders.remove("artifacts")  # of a run with metrics in the database
        if found := sorted(name for name in names if name.endswith(".wandb")):
            runs += [wandb.WandbRun(path / name) for name in found]
            subfolders.clear()  # its `files/` may contain copies of event files
        elif found := [name for name in names if tensorboard.is_event_file(name)]:
            event_files[path] = [path / name for name in found]
    runs += tensorboard.runs_of_folders(root, event_files)
    if not runs:  # a nested CSV may be anything
        for path in sorted(root.iterdir()):
            if path.name.endswith(RUNS_ENDING):  # the facts beside our own export
                continue
            if path.is_file() and path.suffix.lower() in tables.ENDINGS:
                runs += tables.runs_of_file(path)
    return runs
