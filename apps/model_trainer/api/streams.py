"""Rows of a run as server-sent events.

The id of an event is `<resumes>.<rows>`: rows, not bytes, since finishing replaces the log by a Parquet file.
After a resume, an event `rewind` gives the row from which the earlier ones no longer count.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from apps.model_trainer.errors import AppError, ErrorCode
from apps.model_trainer.metrics import rows_of
from apps.model_trainer.reconciler import Reconciler
from common.errors import ExperimentError

_POLL_SECONDS = 0.5
_KEEP_ALIVE_SECONDS = 15.0


async def follow_metrics(
    run_id: str, reconciler: Reconciler, resumes: int, sent: int
) -> AsyncIterator[str]:
    """Yield the rows after the first `sent`, then new ones, and `end` when the run has ended."""
    silent = 0.0
    while True:
        state = reconciler.states.get(run_id)  # before the rows: the last ones are then complete
        found = await asyncio.to_thread(_rows, run_id)
        if found is not None:
            now_resumes, rows = found
            if now_resumes != resumes or len(rows) < sent:
                sent = min(sent, len(rows))
                resumes = now_resumes
                yield _event("rewind", f"{resumes}.{sent}", {"rows": sent})
            for index in range(sent, len(rows)):
                yield _event("metrics", f"{resumes}.{index + 1}", rows[index])
            silent = 0.0 if len(rows) > sent else silent
            sent = len(rows)
        if state is not None and state.is_terminal:
            yield _event("end", f"{resumes}.{sent}", {"status": state.status})
            return
        await asyncio.sleep(_POLL_SECONDS)
        silent += _POLL_SECONDS
        if silent >= _KEEP_ALIVE_SECONDS:
            silent = 0.0
            yield ": \n\n"


def _rows(run_id: str) -> tuple[int, list[dict[str, Any]]] | None:
    try:
        return rows_of(run_id)
    except ExperimentError:  # not started yet
        return None


def parse_event_id(event_id: str | None) -> tuple[int, int]:
    """(resumes, rows) of a Last-Event-ID. Raises AppError for any other text."""
    if event_id is None:
        return 0, 0
    resumes, _, rows = event_id.partition(".")
    if not (resumes.isdecimal() and rows.isdecimal() and len(event_id) < 20):
        raise AppError(ErrorCode.INVALID_REQUEST, "Last-Event-ID is not one of this stream")
    return int(resumes), int(rows)


def _event(kind: str, event_id: str, data: dict[str, Any]) -> str:
    return f"id: {event_id}\nevent: {kind}\ndata: {json.dumps(data)}\n\n"
