"""The HTTP interface: what it answers, and what it refuses."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

pytest.importorskip("rq")

from starlette.testclient import TestClient

from apps.model_trainer.api.security import LARGEST_BODY, OPEN_PATHS
from apps.model_trainer.records import RunFolder
from apps.model_trainer.services import Services
from common.utils import start_experiment
from tests.apps.model_trainer.conftest import request_of

pytestmark = pytest.mark.slow  # a Redis server for each

ROUTES = 12


def operations(client: TestClient) -> list[tuple[str, str]]:
    document = client.get("/openapi.json").json()
    return [(method.upper(), path) for path, item in document["paths"].items() for method in item]


def test_every_route_needs_a_key(client: TestClient) -> None:
    found = operations(client)
    assert len(found) == ROUTES
    for method, path in [*found, ("GET", "/openapi.json"), ("GET", "/nothing")]:
        for headers in ({"X-Api-Key": ""}, {"X-Api-Key": "wrong"}, {"Authorization": "Bearer x"}):
            answer = client.request(method, path, headers={"X-Api-Key": "", **headers})
            assert (answer.status_code == 401) == (path not in OPEN_PATHS), (method, path)
    key = client.headers["X-Api-Key"]
    bearer = {"X-Api-Key": "", "Authorization": f"Bearer {key}"}
    assert client.get("/runs", headers=bearer).status_code == 200


def test_errors_have_one_form_and_the_id_of_the_request(client: TestClient) -> None:
    for method, path, status, code in [
        ("GET", "/runs/nothing", 404, "not_found"),
        ("GET", "/nowhere", 404, "not_found"),
        ("DELETE", "/runs", 405, "method_not_allowed"),
        ("GET", "/runs?limit=0", 422, "invalid_request"),
        ("GET", "/schemas/basline", 404, "not_found"),
        ("GET", "/runs/..%2f..%2fetc", 404, "not_found"),
    ]:
        answer = client.request(method, path, headers={"X-Request-ID": "mine-1"})
        assert answer.status_code == status, path
        assert answer.json().keys() == {"code", "message", "hint", "request_id"}
        assert answer.json()["code"] == code
        assert answer.headers["X-Request-ID"] == answer.json()["request_id"] == "mine-1"
    odd = client.get("/runs/nothing", headers={"X-Request-ID": "a b\tc"})
    assert odd.headers["X-Request-ID"] != "a b\tc"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"overrides": {"training.max_stepz": 3}}, "did you mean 'max_steps'"),
        ({"overrides": {"training.max_steps": "many"}}, "training.max_steps"),
        ({"overrides": {"training.max_steps": -3}}, "training.max_steps"),
        ({"project": "basline"}, "there is no project 'basline'"),
        ({"config": "../../secret.yaml"}, "has no configuration"),
        ({"config": "/etc/passwd"}, "has no configuration"),
        ({"overrides": {"data.dataset": "nothing_there"}}, "nothing_there"),
        ({"name": "../evil"}, "not a valid experiment name"),
        ({"name": "a\x00b"}, "not a valid experiment name"),
        ({"nam": "x"}, "nam"),
        ({"project": 3}, "project"),
    ],
    ids=str,
)
def test_a_run_is_validated_before_it_is_accepted(
    change: dict[str, Any], reason: str, client: TestClient
) -> None:
    answer = client.post("/runs/train", json=request_of("a") | change)
    assert answer.status_code in (404, 422), answer.text
    assert reason in answer.json()["message"]
    assert client.get("/runs").json()["data"] == [] and not RunFolder("a").exists()


def test_a_request_is_accepted_once(client: TestClient) -> None:
    first = client.post("/runs/train", json=request_of("a"), headers={"Idempotency-Key": "k"})
    assert first.status_code == 202 and first.headers["Location"] == "/runs/a"
    assert first.json() == {"id": "a", "status": "queued"}
    again = client.post("/runs/train", json=request_of("a"), headers={"Idempotency-Key": "k"})
    assert again.status_code == 202 and again.json()["id"] == "a"
    other = client.post("/runs/train", json=request_of("b"), headers={"Idempotency-Key": "k"})
    assert other.status_code == 409 and "Idempotency-Key" in other.json()["message"]
    taken = client.post("/runs/train", json=request_of("a"))
    assert taken.status_code == 409 and "a_002" in taken.json()["hint"]
    unnamed = client.post("/runs/train", json=request_of())
    assert unnamed.json()["id"] == "quickstart_001"
    keyed = [
        client.post("/runs/train", json=request_of(), headers={"Idempotency-Key": "m"}).json()["id"]
        for _ in range(3)
    ]
    assert keyed == ["quickstart_002"] * 3
    assert [run["id"] for run in client.get("/runs").json()["data"]] == [
        "a",
        "quickstart_001",
        "quickstart_002",
    ]


def test_runs_come_in_pages_and_with_an_etag(client: TestClient) -> None:
    for name in ("a", "b", "c.1"):
        client.post("/runs/train", json=request_of(name))
    page = client.get("/runs", params={"limit": 2}).json()
    assert [run["id"] for run in page["data"]] == ["a", "b"] and page["has_more"]
    rest = client.get("/runs", params={"after": page["last_id"]}).json()
    assert [run["id"] for run in rest["data"]] == ["c.1"] and not rest["has_more"]
    assert client.get("/runs", params={"status": "failed"}).json()["data"] == []
    answer = client.get("/runs/a")
    assert answer.json()["project"] == "baseline" and answer.json()["step"] is None
    tag = {"If-None-Match": answer.headers["ETag"]}
    assert client.get("/runs/a", headers=tag).status_code == 304
    client.post("/runs/a/cancel")
    changed = client.get("/runs/a", headers=tag)
    assert changed.status_code == 200 and changed.json()["status"] == "cancelled"


def test_a_queued_run_is_cancelled_and_resumed(client: TestClient, services: Services) -> None:
    client.post("/runs/train", json=request_of("a"))
    assert services.queue.depth() == 1
    for _ in range(2):
        assert client.post("/runs/a/cancel").json()["status"] == "cancelled"
    assert services.queue.depth() == 0
    for _ in range(2):
        assert client.post("/runs/a/resume").json()["status"] == "queued"
    assert client.post("/runs/b/cancel").status_code == 404


def test_large_bodies_are_refused(client: TestClient) -> None:
    body = json.dumps(request_of("a") | {"tags": ["x" * LARGEST_BODY]}).encode()
    assert client.post("/runs/train", content=body).status_code == 413

    def chunks() -> Any:
        yield from [body[start : start + 65536] for start in range(0, len(body), 65536)]

    assert client.post("/runs/train", content=chunks()).status_code == 413
    deep = b'{"overrides":' + b"[" * 100_000
    assert client.post("/runs/train", content=deep).status_code == 422


def test_the_schema_of_a_project(client: TestClient) -> None:
    schema = client.get("/schemas/baseline").json()
    assert "max_steps" in json.dumps(schema)
    names = {project["name"] for project in client.get("/schemas").json()}
    assert {"baseline", "digits", "finetune"} <= names


def test_health_tells_what_is_missing(client: TestClient, services: Services) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    ready = client.get("/readyz")
    assert ready.status_code == 503  # no worker
    assert ready.json()["redis"] and ready.json()["workers"] == 0


def test_rows_are_streamed_and_replayed(client: TestClient) -> None:
    client.post("/runs/train", json=request_of("a"))
    with start_experiment("a", tags=["service"]) as run:
        for step in range(5):
            run.log({"loss": float(step) if step else math.nan}, step=step)
    lines = client.get("/runs/a/metrics/stream").text.splitlines()
    ids = [line[4:] for line in lines if line.startswith("id: ")]
    data = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
    assert ids == ["0.1", "0.2", "0.3", "0.4", "0.5", "0.5"]
    assert [row["metrics"]["loss"] for row in data[1:5]] == [1.0, 2.0, 3.0, 4.0]
    assert data[-1] == {"status": "completed"}
    again = client.get("/runs/a/metrics/stream", headers={"Last-Event-ID": "0.3"}).text
    assert [line[4:] for line in again.splitlines() if line.startswith("id: ")] == ids[3:]
    for wrong in ("x", "-1.2", "1", "9" * 30):
        answer = client.get("/runs/a/metrics/stream", headers={"Last-Event-ID": wrong})
        assert answer.status_code == 422, wrong
    rows = client.get("/runs/a/metrics").json()
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4] and rows[1]["metrics"]["loss"] == 1.0
