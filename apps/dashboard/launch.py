"""Start the dashboard: find a port, open a browser, shut down cleanly."""

from __future__ import annotations

import os
import socket
import sys
import webbrowser
from importlib.util import find_spec
from types import FrameType

from common.errors import MissingPackageError, ResearchError

HOST = "127.0.0.1"  # never an address that another machine can reach
DEFAULT_PORT = 8420
_PORTS_TRIED = 100
_PACKAGES = ("fastapi", "uvicorn", "plotly")


def serve(port: int | None = None, open_browser: bool | None = None) -> None:
    """Serve until Ctrl-C. `port` None: the first free one from 8420; `open_browser` None: if there is a display.

    Raises MissingPackageError without the extra `dashboard`, ResearchError if `port` is taken.
    """
    missing = [package for package in _PACKAGES if find_spec(package) is None]
    if missing:
        raise MissingPackageError(
            f"the dashboard needs the packages {', '.join(missing)}",
            'install them: uv pip install -e ".[dashboard]"',
        )
    # Bound before anything slow is imported, so that a taken port is reported at once.
    listener = listen(port)
    import uvicorn

    from apps.dashboard.server import create_app

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            # Exit at once, even during a query: all writes are atomic.
            os._exit(0)

    address = f"http://{HOST}:{listener.getsockname()[1]}"
    print(f"dashboard: {address}  (Ctrl-C ends it)", flush=True)
    if _has_screen() if open_browser is None else open_browser:
        webbrowser.open(address)
    Server(uvicorn.Config(create_app(), log_level="warning")).run(sockets=[listener])


def listen(port: int | None) -> socket.socket:
    candidates = range(DEFAULT_PORT, DEFAULT_PORT + _PORTS_TRIED) if port is None else [port]
    for candidate in candidates:
        # Explicit protocol number: without it asyncio leaves Nagle's algorithm on, and each
        # response waits 40 ms for the acknowledgement of its header.
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        if os.name != "nt":  # on Windows it would share the port with another process
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, candidate))
            listener.listen()  # a browser now waits instead of failing
            return listener
        except OSError as error:
            listener.close()
            reason = error.strerror
    if port is None:
        raise ResearchError(f"no free port from {DEFAULT_PORT} to {candidates[-1]}")
    raise ResearchError(
        f"cannot listen on port {port}: {reason}", "leave out --port, or choose another"
    )


def _has_screen() -> bool:
    if sys.platform in ("win32", "darwin"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
