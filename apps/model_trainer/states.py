"""The state of a run, derived from files: the store, the locks, the events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from apps.model_trainer.records import Event, RunFolder
from common.errors import ExperimentError
from common.experiments.catalogue import Catalogue
from common.experiments.names import is_finished
from common.experiments.store import is_running
from common.utils.file_locks import is_locked

Status = Literal["queued", "running", "cancelling", "cancelled", "completed", "failed"]
TERMINAL: tuple[Status, ...] = ("cancelled", "completed", "failed")
TAG = "service"  # of the experiments that the service trains


@dataclass(frozen=True)
class RunState:
    """What GET /runs/{id} reports of a run.

    Attributes:
        attempt: number of the last job that was queued for it.
        supervised: whether a supervisor of this host holds it.
        retry_after: seconds since 1970 before which it is not queued again.
        message: why it failed or waits.
        updated: time of the last event, in seconds since 1970.
    """

    run_id: str
    status: Status
    attempt: int
    supervised: bool
    retry_after: float
    message: str
    updated: float

    @property
    def is_terminal(self) -> bool:
        """Whether nothing more happens without a request."""
        return self.status in TERMINAL


def state_of(folder: RunFolder) -> RunState:
    """Derive the state: stored, else held, else cancelled, else failed, else queued."""
    events = folder.events()
    summary, supervised = _Summary(events), is_locked(folder.lock_path)
    if is_stored_by_service(folder.run_id):
        status: Status = "completed"
    elif is_running(folder.run_id) or supervised:  # by its trainer, or shortly before and after it
        status = "cancelling" if summary.cancel_asked else "running"
    elif summary.failed is not None:
        status = "failed"
    elif summary.cancel_asked:
        status = "cancelled"
    else:
        status = "queued"
    message = "" if status == "completed" else summary.message
    return RunState(
        folder.run_id,
        status,
        summary.attempt,
        supervised,
        summary.retry_after,
        message,
        events[-1].time if events else 0.0,
    )


class _Summary:
    """The events after the last `resume`."""

    def __init__(self, events: list[Event]) -> None:
        self.attempt, self.retry_after, self.message = 0, 0.0, ""
        self.cancel_asked = False
        self.failed: Event | None = None
        for event in events:
            facts: dict[str, Any] = dict(event.facts)
            match event.kind:
                case "queued":
                    self.attempt = max(self.attempt, int(facts.get("attempt", 0)))
                case "cancel":
                    self.cancel_asked = True
                case "resume":
                    self.cancel_asked, self.failed, self.message = False, None, ""
                    self.retry_after = 0.0
                case "retry":
                    self.retry_after = float(facts.get("after", 0.0))
                    self.message = str(facts.get("reason", ""))
                case "failed":
                    self.failed, self.message = event, str(facts.get("reason", ""))
                case "started":
                    self.message = ""


def is_stored_by_service(run_id: str) -> bool:
    """Whether the experiment of this name is finished and was trained by the service: one that was started by
    hand under the name of a queued run is another."""
    if not is_finished(run_id):
        return False
    try:
        return TAG in Catalogue().manifest(run_id).get("tags", [])
    except ExperimentError:
        return False


def progress(run_id: str) -> dict[str, Any]:
    """The last logged step with its metrics, the number of steps, and the estimated seconds left."""
    catalogue = Catalogue()
    try:
        manifest = catalogue.manifest(run_id)
    except ExperimentError:
        return {}
    summaries = catalogue.summaries(name=run_id)
    step = max((summary.last_step for summary in summaries), default=0)
    total = manifest.get("config", {}).get("training", {}).get("max_steps")
    metrics = {f"{summary.split}/{summary.metric}": summary.last for summary in summaries}
    seconds = manifest.get("duration")
    left = None
    if manifest.get("status") == "running" and total and step and seconds:
        left = round(seconds / step * (total - step), 1)
    return {"step": step, "max_steps": total, "metrics": metrics, "seconds_left": left}
