"""Read the JSON of our own export: a list of manifests, each with its `rows`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from apps.importing.foreign import Content, ForeignRun, readable_errors
from common.errors import ExperimentError
from common.experiments.rows import make_row

ENDING = ".json"


def runs_of_file(path: Path) -> list[ForeignRun]:
    """The experiments in the file. Raises ExperimentError if it is not such a list."""
    with readable_errors(path, ValueError, RecursionError):
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    if not isinstance(entries, list) or not all(map(_is_experiment, entries)):
        raise ExperimentError(
            f"{path} is not an export of experiments",
            "expected the output of --export FILE.json; for other rows use .jsonl or .csv",
        )
    return [ExportedRun(path, entry) for entry in entries]


def _is_experiment(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("name"), str) and "rows" in entry


class ExportedRun(ForeignRun):
    """One exported experiment with its full manifest."""

    kind = "json"

    def __init__(self, path: Path, entry: dict[str, Any]) -> None:
        super().__init__(path, entry["name"])
        self._entry = entry

    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(self._entry, sort_keys=True).encode()).hexdigest()

    def read(self) -> Content:
        facts = {key: value for key, value in self._entry.items() if key != "rows"}
        known: dict[str, str] = {}
        rows = []
        for number, row in enumerate(self._entry["rows"], start=1):
            try:
                metrics = {name: _number(value) for name, value in row["metrics"].items()}
                fixed = (row["step"], row["split"], _number(row["epoch"]), _number(row["time"]))
                rows.append(make_row(*fixed, metrics, known))
            except (ExperimentError, KeyError, TypeError, ValueError, AttributeError) as error:
                raise ExperimentError(f"{self.label}, row {number}: {error!r}") from error
        return Content(facts, rows, [])


def _number(value: Any) -> Any:
    """Convert NaN and infinities, which are strings there."""
    return float(value) if isinstance(value, str) else value
