"""Start the parts of the service and keep them alive: Redis, the API, workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from types import FrameType

from filelock import BaseFileLock, Timeout

from apps.model_trainer.keys import has_keys, new_key
from common.errors import MissingPackageError, ResearchError
from common.utils.file_locks import file_lock
from common.utils.packages import missing_packages
from common.utils.paths import REPOSITORY_ROOT, display_path, get_service_dir
from common.utils.sockets import listen

HOST = "127.0.0.1"
DEFAULT_PORT = 8430
_PACKAGES = ("fastapi", "uvicorn", "redis", "rq")
_DRAIN_SECONDS = 150.0
_RESTART_SECONDS = 1.0
_held: list[BaseFileLock] = []  # released when the process ends


@dataclass
class Part:
    """A process of the service, started again whenever it ends."""

    name: str
    arguments: list[str]
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0

    def keep_alive(self) -> None:
        """Start it unless it runs; at most once a second."""
        if self.process is not None and self.process.poll() is None:
            return
        if time.monotonic() - self.started < _RESTART_SECONDS:
            return
        if self.process is not None:
            print(
                f"{self.name} ended with {self.process.returncode}, starting it again", flush=True
            )
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            self.arguments, cwd=REPOSITORY_ROOT, stdin=subprocess.DEVNULL, start_new_session=True
        )

    def stop(self) -> None:
        """SIGTERM, and wait: a worker lets its trainer save."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=_DRAIN_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()


def run(*, api: bool, workers: int, port: int | None) -> None:
    """Run the parts until Ctrl-C or SIGTERM, then stop them in order: workers, API, Redis.

    Raises ResearchError for missing packages, a taken port and a Redis that does not start.
    """
    if absent := missing_packages(_PACKAGES):
        raise MissingPackageError(
            f"the service needs the packages {', '.join(absent)}",
            'install them: uv pip install -e ".[service]"',
        )
    from apps.model_trainer.redis_server import OwnServer, own_url

    if api:
        _only_one_api()
    url = os.environ.get("REDIS_URL", "")
    server = None if url else OwnServer()
    url = url or own_url()
    parts = [
        Part(f"worker {number + 1}", [sys.executable, "-m", "apps.model_trainer.worker", url])
        for number in range(workers)
    ]
    if api:
        listener = listen(HOST, port, DEFAULT_PORT)
        chosen = listener.getsockname()[1]
        listener.close()
        module = [sys.executable, "-m", "apps.model_trainer.api.serve"]
        parts.append(Part("API", [*module, url, str(chosen)]))
        _greet(chosen)
    stopped: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.append(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        while not stopped:
            if server is not None:
                server.keep_alive()
            for part in parts:
                part.keep_alive()
            time.sleep(0.2)
        print("stopping: running trainings save and go on at the next start", flush=True)
    finally:
        for part in parts:
            part.stop()
        if server is not None:
            server.stop()


def _only_one_api() -> None:
    """Hold a lock until this process ends. Raises ResearchError if another service has it."""
    folder = get_service_dir()
    folder.mkdir(parents=True, exist_ok=True)
    lock = file_lock(folder / "service.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise ResearchError(
            f"a service already runs on {display_path(folder)}",
            "stop it, or set RESEARCH_ASSETS_DIR to other assets",
        ) from None
    _held.append(lock)


def _greet(port: int) -> None:
    print(f"model trainer: http://{HOST}:{port}  (Ctrl-C ends it)", flush=True)
    if not has_keys():
        print(f"key, shown once: {new_key()}", flush=True)
        print("send it as the header X-Api-Key", flush=True)
