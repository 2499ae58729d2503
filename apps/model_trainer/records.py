"""What the service records of a run, in `assets/outputs/service/runs/<id>/`. The id is the experiment's name.

request.json      what was asked for, written before the run is queued and never changed
events.jsonl      append-only, with a checksum per line (common/experiments/log.py):
    queued        {attempt}            a job was queued
    started       {attempt, pid, step}
    retry         {after, reason}      a transient failure: not before the time `after`
    interrupted   {reason}             saved and stopped, by a cancellation or a shutdown
    failed        {category, reason}
    cancel, resume                     asked for by the user
trainer.log       what train.py printed
supervisor.lock   held by the supervisor of the run
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from apps.model_trainer.errors import AppError, ErrorCode
from common.errors import ExperimentError
from common.experiments.log import append_records, read_records
from common.experiments.names import exists, next_name
from common.experiments.store import is_name
from common.utils.files import atomic_folder, fsync_dir, fsync_file, read_json
from common.utils.paths import folder_of, get_service_dir

EventKind = Literal["queued", "started", "retry", "interrupted", "failed", "cancel", "resume"]


class TrainRequest(BaseModel):
    """The body of POST /runs/train."""

    model_config = ConfigDict(extra="forbid", strict=True)

    project: str = Field(description="a folder of projects/", examples=["baseline"])
    config: str = Field(
        description="a file of the project's configs/", examples=["configs/quickstart.yaml"]
    )
    overrides: dict[str, JsonValue] = Field(
        default={}, description="`key.path: value`", examples=[{"training.max_steps": 100}]
    )
    name: str | None = Field(
        default=None, description="of the experiment; default: the next free one"
    )
    tags: list[str] = Field(default=[], max_length=20)


@dataclass(frozen=True)
class Event:
    """A line of events.jsonl."""

    kind: str
    time: float  # seconds since 1970
    facts: Mapping[str, JsonValue]


class RunFolder:
    """The folder of one run."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self.path = folder_of(runs_dir(), run_id)

    @property
    def events_path(self) -> Path:
        """The event file; it grows whenever anything happens."""
        return self.path / "events.jsonl"

    @property
    def log_path(self) -> Path:
        """Output of the trainer."""
        return self.path / "trainer.log"

    @property
    def lock_path(self) -> Path:
        """Locked by the supervisor."""
        return self.path / "supervisor.lock"

    def exists(self) -> bool:
        """Whether the run was accepted."""
        return (self.path / "request.json").is_file()

    def request(self) -> TrainRequest:
        """What was asked for."""
        return TrainRequest.model_validate(
            read_json(self.path / "request.json", ExperimentError)["body"]
        )

    def append(self, kind: EventKind, **facts: JsonValue) -> None:
        """Append an event; it is on the disk when this returns."""
        append_records(self.events_path, [{"kind": kind, "time": time.time(), **facts}])

    def events(self) -> list[Event]:
        """All events, from the first."""
        found = []
        for record, _ in read_records(self.events_path):
            if record is not None:
                facts = {key: v for key, v in record.items() if key not in ("kind", "time")}
                found.append(Event(record["kind"], float(record["time"]), facts))
        return found


def runs_dir() -> Path:
    """Folder of the runs of the service."""
    return get_service_dir() / "runs"


def list_runs() -> list[str]:
    """Ids of all runs, by name."""
    try:
        return sorted(path.name for path in runs_dir().iterdir() if not path.name.startswith("."))
    except FileNotFoundError:
        return []


_creating = threading.Lock()  # names are chosen one by one


def create_run(
    request: TrainRequest, prefix: str, idempotency_key: str | None = None
) -> tuple[str, bool]:
    """Record a validated request; return its id and whether it is new.

    A repeated `idempotency_key` with the same request returns the id of the first. Raises AppError for
    a key or a name that is used by another request.
    """
    with _creating:
        return _create_run(request, prefix, idempotency_key)


def _create_run(
    request: TrainRequest, prefix: str, idempotency_key: str | None
) -> tuple[str, bool]:
    digest = _digest(request)
    if idempotency_key is None:
        return _record(request, prefix, digest), True
    path = get_service_dir() / "idempotency" / hashlib.sha256(idempotency_key.encode()).hexdigest()
    known = _read_key(path)
    if known is None:
        run_id = _free_name(request, prefix)
        if _claim_key(path, run_id, digest):
            return _record(request, prefix, digest, run_id), True
        known = _read_key(path)
    assert known is not None
    run_id, recorded = known
    if recorded != digest:
        raise AppError(
            ErrorCode.CONFLICT,
            "this Idempotency-Key was used with another request",
            "send a new key with a new request",
        )
    if not RunFolder(run_id).exists():  # killed between key and record
        return _record(request, prefix, digest, run_id), True
    return run_id, False


def _digest(request: TrainRequest) -> str:
    return hashlib.sha256(request.model_dump_json().encode()).hexdigest()


def _free_name(request: TrainRequest, prefix: str) -> str:
    name = request.name
    if name is None:
        name = next_name(f"{prefix}_000")
        while RunFolder(name).path.exists():
            name = next_name(name)
        return name
    if not is_name(name):
        raise AppError(
            ErrorCode.INVALID_REQUEST,
            f"{name!r} is not a valid experiment name",
            "use letters, digits, '.', '_' and '-' (at most 128), a letter or digit first",
        )
    if exists(name) or RunFolder(name).path.exists():
        raise AppError(
            ErrorCode.CONFLICT,
            f"an experiment named '{name}' already exists",
            f"choose another name, for example '{next_name(name)}'",
        )
    return name


def _record(request: TrainRequest, prefix: str, digest: str, run_id: str | None = None) -> str:
    """Write the folder of a run; another process may take the name meanwhile."""
    while True:
        name = run_id or _free_name(request, prefix)
        content = {"body": request.model_dump(mode="json"), "sha256": digest, "time": time.time()}
        try:
            with atomic_folder(RunFolder(name).path) as building:
                (building / "request.json").write_text(json.dumps(content, indent=2))
                (building / "events.jsonl").touch()
                (building / "supervisor.lock").touch()
            fsync_dir(runs_dir())
            return name
        except OSError:
            if not RunFolder(name).exists():
                raise
            if run_id is not None or request.name is not None:
                raise AppError(
                    ErrorCode.CONFLICT, f"an experiment named '{name}' already exists"
                ) from None


def _read_key(path: Path) -> tuple[str, str] | None:
    try:
        run_id, _, digest = path.read_text().partition(" ")
    except FileNotFoundError:
        return None
    return run_id, digest


def _claim_key(path: Path, run_id: str, digest: str) -> bool:
    """Create the file of a key, complete or not at all; False if it exists."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    try:
        temporary.write_text(f"{run_id} {digest}")
        fsync_file(temporary)
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    fsync_dir(path.parent)
    return True
