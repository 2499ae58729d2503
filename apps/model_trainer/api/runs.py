"""Runs: start, look, stop, go on."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from apps.model_trainer.api.streams import follow_metrics, parse_event_id
from apps.model_trainer.errors import AppError, ErrorCode
from apps.model_trainer.metrics import rows_of
from apps.model_trainer.projects import check_request
from apps.model_trainer.records import RunFolder, TrainRequest, create_run
from apps.model_trainer.services import Services, services_of
from apps.model_trainer.states import RunState, Status, progress
from common.errors import ExperimentError, did_you_mean

router = APIRouter(tags=["runs"])
ServicesOf = Annotated[Services, Depends(services_of)]
_LONGEST_PAGE = 2**20  # bytes of a log


class Accepted(BaseModel):
    """A run that was accepted."""

    id: str
    status: Status


class RunView(BaseModel):
    """A run with its progress."""

    id: str
    status: Status
    project: str
    config: str
    attempt: int
    message: str
    updated: float
    step: int | None = None
    max_steps: int | None = None
    seconds_left: float | None = None
    metrics: dict[str, float | None] = {}


class RunItem(BaseModel):
    """A run in a list."""

    id: str
    status: Status
    message: str
    updated: float


class RunPage(BaseModel):
    """A page of runs by name; `after=last_id` gives the next."""

    data: list[RunItem]
    has_more: bool
    last_id: str | None


class LogPage(BaseModel):
    """A part of what the trainer printed; `after=next` gives the next."""

    text: str
    next: int


@router.post("/runs/train", status_code=202)
def train(
    request: TrainRequest,
    response: Response,
    services: ServicesOf,
    idempotency_key: Annotated[str | None, Header(max_length=255)] = None,
) -> Accepted:
    """Train: validated by the project's schema, recorded on the disk, then queued."""
    check_request(request)
    stem = request.config.rpartition("/")[2].rpartition(".")[0]
    run_id, _ = create_run(request, stem, idempotency_key)
    response.headers["Location"] = f"/runs/{run_id}"
    state = _refreshed(services, run_id)
    return Accepted(id=run_id, status=state.status)


@router.get("/runs")
def list_page(
    services: ServicesOf,
    after: str = "",
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    status: Status | None = None,
) -> RunPage:
    """Runs by name, in pages."""
    states = sorted(services.reconciler.states.copy().items())
    found = [s for name, s in states if name > after and status in (None, s.status)]
    page = found[:limit]
    return RunPage(
        data=[
            RunItem(id=s.run_id, status=s.status, message=s.message, updated=s.updated)
            for s in page
        ],
        has_more=len(found) > limit,
        last_id=page[-1].run_id if page else None,
    )


@router.get("/runs/{run_id}", response_model=RunView)
async def show(run_id: str, request: Request, services: ServicesOf) -> Response:
    """Status, progress and the last metrics of a run, with an ETag."""
    body, etag = services.views.get(_known(services, run_id), _view)
    headers = {"ETag": etag}
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    return Response(body, media_type="application/json", headers=headers)


def _view(state: RunState) -> bytes:
    asked = RunFolder(state.run_id).request()
    view = RunView(
        id=state.run_id,
        status=state.status,
        project=asked.project,
        config=asked.config,
        attempt=state.attempt,
        message=state.message,
        updated=state.updated,
        **progress(state.run_id),
    )
    return view.model_dump_json().encode()


@router.post("/runs/{run_id}/cancel", status_code=202)
def cancel(run_id: str, services: ServicesOf) -> Accepted:
    """Save and stop; the run can be resumed. May be repeated."""
    state = _known(services, run_id)
    if state.status in ("completed", "failed"):
        raise AppError(ErrorCode.CONFLICT, f"'{run_id}' has {state.status}")
    if state.status not in ("cancelling", "cancelled"):
        RunFolder(run_id).append("cancel")
    state = _refreshed(services, run_id)
    services.queue.withdraw(run_id, state.attempt)  # if no worker has it, none need take it
    return Accepted(id=run_id, status=state.status)


@router.post("/runs/{run_id}/resume", status_code=202)
def resume(run_id: str, services: ServicesOf) -> Accepted:
    """Go on with a run that was cancelled or has failed. May be repeated."""
    state = _known(services, run_id)
    if state.status == "completed":
        raise AppError(ErrorCode.CONFLICT, f"'{run_id}' is completed")
    if state.status in ("cancelling", "cancelled", "failed"):
        RunFolder(run_id).append("resume")
    return Accepted(id=run_id, status=_refreshed(services, run_id).status)


@router.get("/runs/{run_id}/logs")
def logs(
    run_id: str,
    services: ServicesOf,
    after: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=1, le=_LONGEST_PAGE)] = 65536,
) -> LogPage:
    """What the trainer printed, from byte `after` on."""
    _known(services, run_id)
    try:
        with RunFolder(run_id).log_path.open("rb") as file:
            file.seek(after)
            content = file.read(limit)
    except FileNotFoundError:
        content = b""
    return LogPage(text=content.decode(errors="replace"), next=after + len(content))


@router.get("/runs/{run_id}/metrics")
def metrics(run_id: str, services: ServicesOf) -> list[dict[str, Any]]:  # metrics have any name
    """Rows of the experiment: step, split and metrics."""
    _known(services, run_id)
    try:
        return rows_of(run_id)[1]
    except ExperimentError:  # not started yet
        return []


@router.get("/runs/{run_id}/metrics/stream")
def stream(
    run_id: str,
    services: ServicesOf,
    last_event_id: Annotated[str | None, Header()] = None,
) -> StreamingResponse:
    """Rows as server-sent events, from `Last-Event-ID` on, and an event `end` with the status."""
    _known(services, run_id)
    resumes, rows = parse_event_id(last_event_id)
    events = follow_metrics(run_id, services.reconciler, resumes, rows)
    return StreamingResponse(events, media_type="text/event-stream")


def _known(services: Services, run_id: str) -> RunState:
    """The state of a run. Raises AppError, with the nearest name, if there is none."""
    state = services.reconciler.states.get(run_id) or services.reconciler.refresh(run_id)
    if state is None:
        names = list(services.reconciler.states)
        raise AppError(
            ErrorCode.NOT_FOUND, f"there is no run '{run_id}'", did_you_mean(run_id, names)
        )
    return state


def _refreshed(services: Services, run_id: str) -> RunState:
    state = services.reconciler.refresh(run_id)
    assert state is not None  # it was just recorded
    return state
