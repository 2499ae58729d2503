"""import_experiments: store runs of other trackers as finished experiments."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any, Literal, NamedTuple

from apps.importing.detect import find_runs
from apps.importing.foreign import (
    ForeignRun,
    tidy_json,
    tidy_text,
)
from apps.importing.mlflow import DeletedRunError
from common.errors import ExperimentError, MissingPackageError
from common.experiments import store
from common.experiments.names import claim_name
from common.experiments.recovery import open_catalogue
from common.experiments.run import enter_into_catalogue
from common.terminal import printable
from common.utils.logging import get_logger
from common.utils.manifest import ID, check_manifest, identity, now, plain_facts

OnConflict = Literal["rename", "skip"]
TAG = "imported"
_STATUSES = ("finished", "failed", "interrupted")
_NAME_CHARACTERS = 128
# Facts of our own runs that a foreign run may lack: nothing of this machine is recorded for it.
_EMPTY: dict[str, Any] = {
    "project": "",
    "finished": None,
    "duration": None,
    "config": {},
    "seed": None,
    "parameters": None,
    "tokens": None,
    "git_commit": None,
    "git_dirty": None,
    "host": None,
}


class ImportReport(NamedTuple):
    """Result: names of `imported` runs; (run, reason) for the others."""

    imported: list[str]
    skipped: list[tuple[str, str]]
    refused: list[tuple[str, str]]


def import_experiments(
    source: Path, *, project: str = "", on_conflict: OnConflict = "rename"
) -> ImportReport:
    """Import every run in `source`: a file or folder of TensorBoard, W&B, MLflow, or tables.

    An unchanged run that was imported before is skipped. If another experiment has its name (such
    as an earlier state of the same run), it is stored as `<name>-2`, or skipped if `on_conflict` is
    "skip". `project` overrides the project of the source. Unreadable runs are refused and the
    others are imported. Raises ExperimentError if nothing is found or the source is unreadable, and
    MissingPackageError if reading needs a package that is not installed.
    """
    runs = find_runs(Path(source))
    importer = _Importer(project, on_conflict)
    try:
        for run in _with_progress(runs):
            importer.add(run)
    finally:
        if importer.report.imported:
            enter_into_catalogue()
    return importer.report


class _Importer:
    def __init__(self, project: str, on_conflict: OnConflict) -> None:

        self.report = ImportReport([], [], [])
        self._project = project
        self._on_conflict = on_conflict
        self._log = get_logger("experiments")
        self._last_numbers: Counter[str] = Counter()
        self._names: dict[tuple[str, str, str], str] = {}  # by kind, id, fingerprint
        self._states: dict[tuple[str, str, str], str] = {}  # by kind, id, path
        self._ids: dict[str, str] = {}  # names of stored experiments
        for manifest in open_catalogue().manifests:
            self._ids[identity(manifest)] = str(manifest["name"])
            source = manifest.get("source")
            if isinstance(source, dict):
                kind, path, identifier, fingerprint = (
                    str(source.get(key)) for key in ("kind", "path", "id", "fingerprint")
                )
                self._names[kind, identifier, fingerprint] = str(manifest["name"])
                self._states[kind, identifier, path] = str(manifest["name"])

    def add(self, run: ForeignRun) -> None:
        try:
            key = (run.kind, run.identifier, run.fingerprint())
            if name := self._names.get(key):
                self.report.skipped.append((run.label, f"already imported as '{name}'"))
                return
            content = run.read()
            if not content.rows and not content.facts.get("config"):
                raise ExperimentError(f"{run.label} has no metrics")
            manifest = self._manifest(run, key[-1], content.facts)
            if name := self._ids.get(manifest[ID]):  # our own export of a stored experiment
                self.report.skipped.append((run.label, f"already imported as '{name}'"))
                return
        except MissingPackageError:
            raise
        except DeletedRunError:
            return
        except (ExperimentError, OSError) as error:
            self.report.refused.append((run.label, str(error)))
            return
        if name := self._store(manifest, content.rows):
            self._names[key] = self._ids[manifest[ID]] = name
            self.report.imported.append(name)
            if earlier := self._states.get((run.kind, run.identifier, str(run.path))):
                self._log.warning(f"{name}: the run has changed since it was imported as {earlier}")
            for warning in content.warnings:
                self._log.warning(f"{name}: {warning}")
        else:
            why = f"the name '{manifest['name']}' is taken"
            self.report.skipped.append((run.label, why))

    def _manifest(self, run: ForeignRun, fingerprint: str, facts: dict[str, Any]) -> dict[str, Any]:
        facts = tidy_json({k: v for k, v in facts.items() if v is not None})
        manifest = _EMPTY | facts
        manifest["name"] = _valid_name(str(facts.get("name") or run.kind))
        manifest["project"] = self._project or manifest["project"]
        if manifest.get("status") not in _STATUSES:
            manifest["status"] = "interrupted"
        manifest.setdefault("started", _changed(run.path))
        if manifest["duration"] is None and manifest["finished"] is not None:
            manifest["duration"] = _seconds(manifest["started"], manifest["finished"])
        if manifest["seed"] is None:
            manifest["seed"] = _seed(manifest["config"])
        manifest["tags"] = list(dict.fromkeys([*manifest.get("tags", []), TAG]))
        if ID not in facts:  # by content, so that imports on two machines agree
            content = f"{run.kind} {run.identifier} {fingerprint}"
            manifest[ID] = sha256(content.encode(errors="backslashreplace")).hexdigest()[:32]
        manifest["source"] = {
            "kind": run.kind,
            "path": tidy_text(str(run.path)),
            "id": run.identifier,
            "fingerprint": fingerprint,
            "imported": now(),
        }
        try:
            return check_manifest(plain_facts(manifest))
        except ValueError as error:
            raise ExperimentError(f"{run.label}: {error}") from error

    def _store(self, manifest: dict[str, Any], rows: Iterable[dict[str, Any]]) -> str:
        """Store the run and return its name; "" if its name is taken and no other is allowed."""
        from common.experiments.parquet import write_parquet

        wish = manifest["name"]
        for name in self._candidates(wish):
            try:
                claim_name(name)
                break
            except ExperimentError:  # taken: the name itself is valid
                if self._on_conflict == "skip":
                    return ""
        manifest["name"] = name
        try:
            write_parquet(manifest, rows)
        finally:
            store.log_path(name).unlink(missing_ok=True)
        return name

    def _candidates(self, name: str) -> Iterator[str]:
        """Yield `name`, `name-2`, `name-3` ...; taken ones are not tried again."""
        first = self._last_numbers[name] + 1
        for number in count(first):
            self._last_numbers[name] = number
            ending = f"-{number}" if number > 1 else ""
            yield name[: _NAME_CHARACTERS - len(ending)] + ending


def _valid_name(name: str) -> str:
    """Convert to a valid name: `lr 0.1/seed 1` becomes `lr-0.1-seed-1`."""
    valid = re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip("._-").rstrip("-")
    return valid[:_NAME_CHARACTERS] or TAG


def _changed(path: Path) -> str:
    seconds = path.stat().st_mtime
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def _seconds(started: str, finished: str) -> float:
    passed = datetime.fromisoformat(finished) - datetime.fromisoformat(started)
    return max(passed.total_seconds(), 0.0)  # the clock may have been set back


def _seed(config: Any) -> int | None:
    seed = config.get("seed") if isinstance(config, dict) else None
    is_seed = type(seed) is int and -(2**63) <= seed < 2**63
    return seed if is_seed else None


def _with_progress(runs: list[ForeignRun]) -> Iterator[ForeignRun]:
    """Yield the runs, with a progress bar if stderr is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (
        TextColumn("importing"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}", markup=False),
    )
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task("", total=len(runs))
        for run in runs:
            progress.update(task, description=printable(run.label[-60:]))
            yield run
            progress.advance(task)
