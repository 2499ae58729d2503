"""Import experiments of other trackers as finished experiments of our store.

importer.py      import_experiments: which runs are new, their names, their manifests
detect.py        the content of a file or folder
foreign.py       the output of a reader of a tracker
tags.py          mapping of tags such as `val/loss` to split, metric, row
tensorboard.py   event files
wandb.py         `.wandb` files of Weights & Biases
mlflow.py        file stores (`mlruns/`) and SQLite stores (`mlflow.db`)
tables.py        CSV, JSON lines, Parquet
"""

from apps.importing.importer import ImportReport, import_experiments

__all__ = ["ImportReport", "import_experiments"]
