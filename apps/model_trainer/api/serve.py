"""The process of the API: python -m apps.model_trainer.api.serve REDIS_URL PORT"""

from __future__ import annotations

import sys

import uvicorn

from apps.model_trainer.api.app import create_app
from apps.model_trainer.services import Services
from common.errors import exit_on_error
from common.utils.sockets import listen

HOST = "127.0.0.1"


def main() -> None:
    """Serve until SIGTERM."""
    url, port = sys.argv[1], int(sys.argv[2])
    with exit_on_error():
        listener = listen(HOST, port, port)
        config = uvicorn.Config(
            create_app(Services(url)),
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=5,
        )
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
