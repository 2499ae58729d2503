"""Health: open to everyone, without a word about the runs."""

from __future__ import annotations

import shutil
from typing import Annotated

import redis
from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel

from apps.model_trainer.services import Services, services_of
from common.utils.paths import get_service_dir

router = APIRouter(tags=["health"])
_LEAST_FREE = 2**28  # bytes


class Health(BaseModel):
    """Whether the process answers."""

    status: str = "ok"


class Readiness(BaseModel):
    """Whether a request would be served, and by what it would not."""

    ready: bool
    redis: bool
    disk: bool
    workers: int
    queue_depth: int


@router.get("/healthz")
async def healthz() -> Health:
    """The process answers."""
    return Health()


@router.get("/readyz")
def readyz(response: Response, services: Annotated[Services, Depends(services_of)]) -> Readiness:
    """503 without Redis, disk space or a worker."""
    from rq import Worker

    try:
        depth, workers = services.queue.depth(), Worker.count(queue=services.queue.queue)
        answers = True
    except redis.RedisError:
        depth, workers, answers = 0, 0, False
    get_service_dir().mkdir(parents=True, exist_ok=True)
    disk = shutil.disk_usage(get_service_dir()).free > _LEAST_FREE
    ready = answers and disk and workers > 0
    if not ready:
        response.status_code = 503
    return Readiness(ready=ready, redis=answers, disk=disk, workers=workers, queue_depth=depth)
