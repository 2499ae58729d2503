"""Experiments that other trackers kept, as finished experiments of our store.

importer.py      import_experiments: which runs are new, their names, their manifests
detect.py        what a file or folder holds
foreign.py       what a reader of a tracker hands over
tags.py          where a tag such as `val/loss` goes: split, metric, row
tensorboard.py   event files
wandb.py         `.wandb` files of Weights & Biases
mlflow.py        file stores (`mlruns/`) and SQLite stores (`mlflow.db`)
tables.py        CSV, JSON lines, Parquet
"""

from apps.importing.importer import ImportReport, import_experiments

__all__ = ["ImportReport", "import_experiments"]
