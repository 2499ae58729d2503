"""The queue of jobs: which run a worker supervises next. Losing it loses nothing, see reconciler.py."""

from __future__ import annotations

from typing import Protocol

import redis
from rq import Queue
from rq.exceptions import DuplicateJobError
from rq.serializers import JSONSerializer

QUEUE = "runs"
SUPERVISE = "apps.model_trainer.supervisor.supervise"  # the one function that workers call
_LONGEST_JOB = -1  # seconds; no limit


class JobQueue(Protocol):
    """What the service needs of a queue. A job may be delivered twice; supervisors exclude each other."""

    def enqueue(self, run_id: str, attempt: int, *, first: bool = False) -> None:
        """Add job `<run_id>-<attempt>` unless it is there; `first`: before all others."""

    def withdraw(self, run_id: str, attempt: int) -> bool:
        """Remove a job that no worker has taken; whether it was there."""

    def is_waiting(self, run_id: str, attempt: int) -> bool:
        """Whether no worker has taken the job yet."""

    def depth(self) -> int:
        """Number of waiting jobs."""


class RQQueue:
    """JobQueue on RQ."""

    def __init__(self, connection: redis.Redis) -> None:
        self.queue = Queue(QUEUE, connection=connection, serializer=JSONSerializer)

    def enqueue(self, run_id: str, attempt: int, *, first: bool = False) -> None:
        """See JobQueue.enqueue."""
        try:
            self.queue.enqueue_call(
                SUPERVISE,
                args=(run_id, attempt),
                job_id=_job_id(run_id, attempt),
                timeout=_LONGEST_JOB,
                result_ttl=60,
                failure_ttl=60,
                at_front=first,
                unique=True,
            )
        except DuplicateJobError:
            return

    def withdraw(self, run_id: str, attempt: int) -> bool:
        """See JobQueue.withdraw."""
        return bool(self.queue.remove(_job_id(run_id, attempt)))

    def is_waiting(self, run_id: str, attempt: int) -> bool:
        """See JobQueue.is_waiting."""
        return self.queue.get_job_position(_job_id(run_id, attempt)) is not None

    def depth(self) -> int:
        """See JobQueue.depth."""
        return len(self.queue)


def _job_id(run_id: str, attempt: int) -> str:
    """RQ allows letters, digits, _ and -; names of runs also have dots."""
    return f"{run_id.replace('_', '__').replace('.', '_d')}-{attempt}"
