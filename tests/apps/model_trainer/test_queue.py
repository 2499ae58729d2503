"""The contract of a JobQueue, over RQ and a real server."""

from __future__ import annotations

import pytest

pytest.importorskip("rq")

from apps.model_trainer.queue import RQQueue
from apps.model_trainer.services import Services

pytestmark = pytest.mark.slow


@pytest.fixture
def queue(services: Services) -> RQQueue:
    return services.queue


def test_a_job_is_there_once_until_it_is_withdrawn(queue: RQQueue) -> None:
    for _ in range(2):
        queue.enqueue("a.b_c", 1)
    queue.enqueue("a_b.c", 1)  # another name, whatever RQ allows in ids
    assert queue.depth() == 2 and queue.is_waiting("a.b_c", 1)
    assert not queue.is_waiting("a.b_c", 2)
    assert queue.withdraw("a.b_c", 1) and not queue.withdraw("a.b_c", 1)
    assert queue.depth() == 1 and not queue.is_waiting("a.b_c", 1)


def test_the_first_overtake_the_others(queue: RQQueue) -> None:
    queue.enqueue("new", 1)
    queue.enqueue("old", 2, first=True)
    assert queue.queue.job_ids == ["old-2", "new-1"]
