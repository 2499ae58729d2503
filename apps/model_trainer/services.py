"""What the API's endpoints use, made once when the application starts."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field

from fastapi import Request

from apps.model_trainer.keys import KeyRing
from apps.model_trainer.queue import RQQueue
from apps.model_trainer.reconciler import Reconciler
from apps.model_trainer.redis_server import connect
from apps.model_trainer.states import RunState
from common.experiments.store import log_path


class Views:
    """Rendered answers of GET /runs/{id}, kept until the state or the log of the run changes: a status is asked
    for far more often than it changes."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[RunState, tuple[int, int], bytes, str]] = {}

    def get(self, state: RunState, render: Callable[[RunState], bytes]) -> tuple[bytes, str]:
        """(body, ETag) of a run."""
        try:
            status = os.stat(log_path(state.run_id))  # noqa: PTH116  # three times as fast
            stamp = (status.st_size, status.st_mtime_ns)
        except FileNotFoundError:
            stamp = (0, 0)
        kept = self._kept.get(state.run_id)
        if kept is None or kept[0] is not state or kept[1] != stamp:
            body = render(state)
            etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
            kept = self._kept[state.run_id] = (state, stamp, body, etag)
        return kept[2], kept[3]


@dataclass
class Services:
    """The container: one dependency reaches it."""

    redis_url: str
    queue: RQQueue = field(init=False)
    reconciler: Reconciler = field(init=False)
    keys: KeyRing = field(default_factory=KeyRing)
    views: Views = field(default_factory=Views)

    def __post_init__(self) -> None:
        self.queue = RQQueue(connect(self.redis_url))
        self.reconciler = Reconciler(self.queue)


def services_of(request: Request) -> Services:
    """The dependency of endpoints."""
    services: Services = request.app.state.services
    return services
