"""Start the dashboard: find a port, open a browser, shut down cleanly."""

from __future__ import annotations

import os
import sys
import webbrowser
from types import FrameType

from common.errors import MissingPackageError
from common.utils.packages import missing_packages
from common.utils.sockets import listen

HOST = "127.0.0.1"  # never an address that another machine can reach
DEFAULT_PORT = 8420
_PACKAGES = ("fastapi", "uvicorn", "plotly")


def serve(port: int | None = None, open_browser: bool | None = None) -> None:
    """Serve until Ctrl-C. `port` None: the first free one from 8420; `open_browser` None: if there is a display.

    Raises MissingPackageError without the extra `dashboard`, ResearchError if `port` is taken.
    """
    if missing := missing_packages(_PACKAGES):
        raise MissingPackageError(
            f"the dashboard needs the packages {', '.join(missing)}",
            'install them: uv pip install -e ".[dashboard]"',
        )
    # Bound before anything slow is imported, so that a taken port is reported at once.
    listener = listen(HOST, port, DEFAULT_PORT)
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


def _has_screen() -> bool:
    if sys.platform in ("win32", "darwin"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
