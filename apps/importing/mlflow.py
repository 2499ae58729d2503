"""MLflow: a file store (`mlruns/<experiment>/<run>/`) or a SQLite store (`mlflow.db`).

Both are read directly, without the package mlflow. Deleted runs, and runs of deleted experiments,
are skipped. The experiment's name becomes the project; `mlflow.*` tags become facts, other tags
`key=value`. MLflow's default step is 0: a metric logged without steps has one row per value,
ordered by time.
"""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from apps.importing.foreign import (
    Content,
    ForeignRun,
    iso_time,
    parse_text,
    readable_errors,
)
from apps.importing.tags import Point, rows_of_points
from common.errors import ExperimentError

_STATUS = {
    # Names in the database, numbers in meta.yaml; unfinished runs are interrupted.
    **dict.fromkeys(("FINISHED", "3"), "finished"),
    **dict.fromkeys(("FAILED", "4"), "failed"),
    **dict.fromkeys(("KILLED", "5"), "interrupted"),
}
_RUN_COLUMNS = "run_uuid, name, status, start_time, end_time, user_id, experiment_id"


class _Run(NamedTuple):
    """A run's own facts; times in milliseconds since 1970."""

    identifier: str
    name: str | None
    status: object
    start_time: int | None
    end_time: int | None
    user: str | None


def is_run_folder(path: Path) -> bool:
    """Whether `path` is a run of a file store."""
    return (path / "meta.yaml").is_file() and (path / "metrics").is_dir()


class MlflowFolderRun(ForeignRun):
    kind = "mlflow"

    def __init__(self, path: Path) -> None:
        super().__init__(path, path.name)

    def fingerprint(self) -> str:
        counts = [
            (name, file.read_bytes().count(b"\n")) for name, file in _files(self.path / "metrics")
        ]
        return _fingerprint(self._run(), counts)

    def read(self) -> Content:
        run = self._run()
        experiment = _read_meta(self.path.parent / "meta.yaml", required=("name",))
        if experiment.get("lifecycle_stage", "active") != "active":
            raise DeletedRunError(f"{self.path}: its experiment is deleted")
        warnings: list[str] = []
        points: list[Point] = []
        for key, file in _files(self.path / "metrics"):
            points += _read_metric(key, file, (run.start_time or 0) / 1000, warnings)
        params, tags = _read_texts(self.path / "params"), _read_texts(self.path / "tags")
        return _content(run, str(experiment["name"]), params, tags, points, warnings)

    def _run(self) -> _Run:
        path = self.path / "meta.yaml"
        meta = _read_meta(path, required=("status", "start_time"))
        if meta.get("lifecycle_stage", "active") != "active":
            raise DeletedRunError(f"{self.path}: the run is deleted")
        name = meta.get("run_name") or meta.get("name")
        user = meta.get("user_id")
        return _Run(
            identifier=str(meta.get("run_id") or meta.get("run_uuid") or self.path.name),
            name=str(name) if name else None,
            status=meta["status"],
            start_time=_milliseconds(meta.get("start_time")),
            end_time=_milliseconds(meta.get("end_time")),
            user=str(user) if user else None,
        )


class DeletedRunError(ExperimentError):
    """The run is in MLflow's trash: neither imported nor refused."""


def is_database(path: Path) -> bool:
    """Whether `path` is a SQLite file; its tables are checked when runs are listed."""
    with path.open("rb") as file:
        return file.read(16) == b"SQLite format 3\0"


def runs_of_database(path: Path) -> list[ForeignRun]:
    """The runs of a SQLite store that are not deleted, oldest first."""
    with _database(path) as database:
        found = database.execute("""SELECT run_uuid FROM runs JOIN experiments USING (experiment_id)
            WHERE runs.lifecycle_stage = 'active' AND experiments.lifecycle_stage = 'active'
            ORDER BY runs.start_time, run_uuid""").fetchall()
    return [MlflowDatabaseRun(path, str(identifier)) for (identifier,) in found]


class MlflowDatabaseRun(ForeignRun):
    kind = "mlflow"

    def fingerprint(self) -> str:
        count = "SELECT key, count(*) FROM metrics WHERE run_uuid = ? GROUP BY key"
        with _database(self.path) as database:
            counts = database.execute(count, (self.identifier,)).fetchall()
            return _fingerprint(self._run(database)[0], counts)

    def read(self) -> Content:
        with _database(self.path) as database:
            run, experiment = self._run(database)
            points = list(self._points(database, (run.start_time or 0) / 1000))
            params, tags = (
                {
                    str(key): str(value)
                    for key, value in database.execute(
                        f"SELECT key, value FROM {table} WHERE run_uuid = ?", (self.identifier,)
                    )
                }
                for table in ("params", "tags")
            )
        return _content(run, experiment, params, tags, points, [])

    def _run(self, database: sqlite3.Connection) -> tuple[_Run, str]:
        (row,) = database.execute(
            f"SELECT {_RUN_COLUMNS} FROM runs WHERE run_uuid = ?", (self.identifier,)
        ).fetchall()
        (experiment,) = database.execute(
            "SELECT name FROM experiments WHERE experiment_id = ?", (row[-1],)
        ).fetchone()
        return _Run(*row[:-1]), experiment

    def _points(self, database: sqlite3.Connection, started: float) -> Iterator[Point]:
        query = "SELECT key, step, timestamp, value, is_nan FROM metrics WHERE run_uuid = ?"
        for key, step, timestamp, value, is_nan in database.execute(query, (self.identifier,)):
            # SQL has no NaN or infinities: MLflow writes a flag, and the largest double.
            number = math.nan if is_nan else float(value)
            if abs(number) == sys.float_info.max:
                number = math.copysign(math.inf, number)
            yield Point(str(key), int(step), timestamp / 1000 - started, number)


@contextmanager
def _database(path: Path) -> Iterator[sqlite3.Connection]:
    """Open the store read-only."""
    errors = (sqlite3.Error, TypeError, ValueError)  # the last two: cells of a wrong type
    with (
        readable_errors(f"{path} as an MLflow store", *errors),
        closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database,
    ):
        yield database


def _content(
    run: _Run,
    experiment: str,
    params: Mapping[str, str],
    tags: Mapping[str, str],
    points: list[Point],
    warnings: list[str],
) -> Content:
    rows, renamed = rows_of_points(points)
    if run.end_time is None:
        warnings = [*warnings, "it was unfinished when imported"]
    facts = {
        "name": run.name or tags.get("mlflow.runName") or f"run-{run.identifier[:8]}",
        "project": experiment,
        "status": _status(run),
        "started": _iso(run.start_time),
        "finished": _iso(run.end_time),
        "config": {key: parse_text(value) for key, value in params.items()},
        "tags": [f"{key}={value}" for key, value in tags.items() if not key.startswith("mlflow.")],
        "user": run.user or tags.get("mlflow.user"),
        "git_commit": tags.get("mlflow.source.git.commit"),
        "argv": [name] if (name := tags.get("mlflow.source.name")) else None,
        "note": tags.get("mlflow.note.content"),
        "parent": tags.get("mlflow.parentRunId"),
    }
    return Content({k: v for k, v in facts.items() if v is not None}, rows, warnings + renamed)


def _fingerprint(run: _Run, counts: list[tuple[str, int]]) -> str:
    """Hash of what changes during a run; equal for both kinds of store."""
    facts = [run.identifier, _status(run), run.start_time, run.end_time, sorted(counts)]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _status(run: _Run) -> str:
    return _STATUS.get(str(run.status), "interrupted")


def _milliseconds(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _iso(milliseconds: int | None) -> str | None:
    return iso_time(milliseconds / 1000) if milliseconds else None


def _read_meta(path: Path, required: tuple[str, ...]) -> dict[str, Any]:
    """Read a meta.yaml with the keys `required`; a truncated one lacks its last keys."""
    import yaml

    with readable_errors(path, yaml.YAMLError, ValueError):
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    for key in required:
        if not isinstance(found, dict) or found.get(key) is None:
            raise ExperimentError(f"{path} is damaged: it has no '{key}'")
    return dict(found)


def _files(folder: Path) -> list[tuple[str, Path]]:
    """(key, file): a key with slashes is a file in folders."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [(path.relative_to(folder).as_posix(), path) for path in files]


def _read_texts(folder: Path) -> dict[str, str]:
    texts = {}
    for key, path in _files(folder):
        with readable_errors(path, ValueError):
            texts[key] = path.read_bytes().decode()
    return texts


def _read_metric(key: str, path: Path, started: float, warnings: list[str]) -> Iterator[Point]:
    """Parse lines `<milliseconds> <value> <step>`, optionally followed by a dataset name."""
    *lines, cut = path.read_bytes().split(b"\n")
    damaged = int(bool(cut))  # complete lines have a line end
    for line in lines:
        try:
            timestamp, value, *rest = line.decode().split(" ")
            step = int(rest[0]) if rest else 0
            yield Point(key, step, int(timestamp) / 1000 - started, float(value))
        except ValueError:
            damaged += 1
    if damaged:
        warnings.append(f"skipped {damaged} damaged lines of the metric '{key}'")
