"""The whole service in processes of its own: trained, cancelled, killed, and nothing lost."""

from __future__ import annotations

import os
import signal
import time

import psutil
import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("rq")

from apps.model_trainer.redis_server import connect, own_url
from common.experiments.store import is_running
from common.utils import query_experiments, start_experiment
from tests.apps.model_trainer.conftest import (
    Service,
    events_of,
    request_of,
    weights_file,
)
from tests.budget import FULL

pytestmark = [pytest.mark.slow, pytest.mark.attack]
full_only = pytest.mark.skipif(not FULL, reason="make attack: whole processes take long to start")
STEPS = 400


def started(service: Service, name: str) -> None:
    service.wait(lambda: is_running(name))


def step_of(service: Service, name: str) -> int:
    return int((service.call(f"/runs/{name}")[1] or {}).get("step") or 0)


def test_runs_are_trained_in_turn_and_a_cancelled_one_goes_on(service: Service) -> None:
    for name in ("first", "second"):
        body = request_of(name, training__max_steps=STEPS, training__checkpoint_every_steps=50)
        assert service.call("/runs/train", body)[0] == 202
    service.wait(lambda: service.status("first") == "completed")
    started(service, "second")
    assert service.call("/runs/second/cancel", {})[1]["status"] in ("cancelling", "cancelled")
    service.wait(lambda: service.status("second") == "cancelled")
    assert service.call("/runs/second/cancel", {})[0] == 202  # may be repeated
    assert service.call("/runs/second/resume", {})[0] == 202
    service.wait(lambda: service.status("second") == "completed")
    assert events_of("second").count("started") == 2
    found = service.call("/runs/second")[1]
    assert found["step"] == found["max_steps"] == STEPS and found["metrics"]["val/loss"] > 0
    assert len(service.call("/runs/second/metrics")[1]) >= STEPS // 5
    assert "second" in service.call("/runs/second/logs")[1]["text"]
    assert service.call("/runs/second/resume", {})[0] == 409
    rows = query_experiments("SELECT name, status FROM runs ORDER BY name")
    assert rows.values.tolist() == [["first", "finished"], ["second", "finished"]]


def test_killed_parts_and_a_lost_queue_lose_nothing(service: Service) -> None:
    """The weights are those of a run that nobody disturbed, and it was started as often as its trainer was
    killed, no more."""
    options = {"training__max_steps": STEPS, "training__checkpoint_every_steps": 25}
    service.call("/runs/train", request_of("calm", **options))
    service.wait(lambda: service.status("calm") == "completed")
    service.call("/runs/train", request_of("stormy", **options))
    started(service, "stormy")
    connect(own_url()).flushall()
    service.part("model_trainer.worker").kill()
    service.part("api.serve").kill()
    service.wait(lambda: service.call("/readyz")[0] == 200)
    (trainer,) = (
        p for p in psutil.process_iter(["cmdline"]) if "stormy" in (p.info["cmdline"] or [])
    )
    service.wait(lambda: step_of(service, "stormy") > 0)
    trainer.kill()
    service.wait(lambda: service.status("stormy") == "completed")
    calm, stormy = (load_file(weights_file(name, STEPS)) for name in ("calm", "stormy"))
    assert all(torch.equal(stormy[key], calm[key]) for key in calm)
    # Killed while nobody watched it, it is queued again; else it is a failure to retry.
    assert events_of("stormy").count("started") == 2 and events_of("stormy").count("retry") <= 1


@full_only
def test_redis_that_is_killed_comes_back(service: Service) -> None:
    service.call("/runs/train", request_of("a", training__max_steps=STEPS))
    started(service, "a")
    service.part("valkey-server").kill()
    service.wait(lambda: service.call("/readyz")[0] == 200)
    service.wait(lambda: service.status("a") == "completed")
    assert events_of("a").count("started") == 1


@full_only
def test_a_stopped_service_saves_and_goes_on_at_the_next_start(
    service: Service, unused_port: int
) -> None:
    service.call("/runs/train", request_of("a", training__max_steps=20_000))
    started(service, "a")
    service.wait(lambda: step_of(service, "a") > 0)
    children = psutil.Process(service.process.pid).children(recursive=True)
    service.stop()
    assert not is_running("a") and "interrupted" in events_of("a")
    assert not [child for child in children if child.is_running()]
    again = Service(unused_port)
    try:
        started(again, "a")
        assert again.call("/runs/a/cancel", {})[0] == 202
        again.wait(lambda: again.status("a") == "cancelled")
    finally:
        again.stop()


@full_only
def test_a_name_that_is_taken_by_hand_and_a_wrong_input_end_in_an_error(service: Service) -> None:
    service.call("/runs/train", request_of("long", training__max_steps=300))
    service.call("/runs/train", request_of("mine", training__max_steps=10))
    with start_experiment("mine") as run:
        run.log({"loss": 1.0}, step=1)
    service.wait(lambda: service.status("mine") == "failed")
    answer = service.call("/runs/mine")[1]
    assert "'mine'" in answer["message"] and "error [experiment]" in answer["message"]
    assert events_of("mine").count("started") == 1  # an error of the user is not tried again
    service.wait(lambda: service.status("long") == "completed")


def test_a_second_service_on_the_same_assets_is_refused(service: Service) -> None:
    import subprocess
    import sys

    from common.utils.paths import REPOSITORY_ROOT

    second = subprocess.run(
        [sys.executable, "tools/service.py"], cwd=REPOSITORY_ROOT, capture_output=True, text=True
    )
    assert second.returncode == 2 and "already runs" in second.stderr


@full_only
def test_ctrl_c_ends_all_parts(service: Service) -> None:
    children = psutil.Process(service.process.pid).children(recursive=True)
    assert len(children) >= 3
    os.kill(service.process.pid, signal.SIGINT)
    assert service.process.wait(timeout=60) == 0
    time.sleep(0.2)
    assert not [child for child in children if child.is_running()]
