"""A worker: RQ takes jobs from the queue and runs a supervisor for each in a process of its own.

python -m apps.model_trainer.worker REDIS_URL
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from types import FrameType

import redis
from rq import Worker
from rq.executions import Execution
from rq.job import Job, JobStatus
from rq.queue import Queue
from rq.serializers import JSONSerializer

from apps.model_trainer.queue import QUEUE, SUPERVISE
from apps.model_trainer.redis_server import answers, connect
from apps.model_trainer.supervisor import supervise  # here, so that each job need not import it
from common.utils.logging import get_logger

log = get_logger("worker")


class TrainingWorker(Worker):
    """A worker that calls one function only, and hands a request to stop to the supervisor, which lets the
    trainer save."""

    def perform_job(self, job: Job, queue: Queue, execution: Execution) -> bool:
        """Refuse any other function: what is in Redis may not be ours."""
        if job.func_name != SUPERVISE or job.func is not supervise:
            log.error(f"job {job.id} calls {job.func_name!r}: refused")
            job.set_status(JobStatus.CANCELED)
            return False
        return super().perform_job(job, queue, execution)

    stop_asked = False

    def request_stop(self, signum: int, frame: FrameType | None) -> None:
        """SIGTERM or Ctrl-C: no new jobs; the running one saves and ends."""
        self.stop_asked = True
        if self.horse_pid:
            with suppress(ProcessLookupError):
                os.kill(self.horse_pid, signal.SIGTERM)
        super().request_stop(signum, frame)  # type: ignore[no-untyped-call]  # RQ's

    def request_force_stop(self, signum: int, frame: FrameType | None) -> None:
        """A second signal does not kill: the trainer is still saving."""


def main() -> None:
    """Work until SIGTERM; wait while Redis is away."""
    url = sys.argv[1]
    while True:
        while not answers(url):
            time.sleep(0.5)
        connection = connect(url)
        worker = TrainingWorker(
            [Queue(QUEUE, connection=connection, serializer=JSONSerializer)],
            connection=connection,
            serializer=JSONSerializer,
        )
        try:
            worker.work(logging_level="WARNING")
        except (redis.ConnectionError, redis.TimeoutError):
            continue
        if worker.stop_asked:
            return


if __name__ == "__main__":
    main()
