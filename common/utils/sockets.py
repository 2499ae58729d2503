"""Listening sockets of local servers."""

from __future__ import annotations

import os
import socket

from common.errors import ResearchError

_PORTS_TRIED = 100


def listen(host: str, port: int | None, first_port: int) -> socket.socket:
    """A socket that listens on `port`, or on the first free one from `first_port`.

    Raises ResearchError if there is none.
    """
    candidates = range(first_port, first_port + _PORTS_TRIED) if port is None else [port]
    for candidate in candidates:
        # Explicit protocol number: without it asyncio leaves Nagle's algorithm on, and each
        # response waits 40 ms for the acknowledgement of its header.
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        if os.name != "nt":  # on Windows it would share the port with another process
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, candidate))
            listener.listen(1024)  # a client now waits instead of failing
            return listener
        except OSError as error:
            listener.close()
            reason = error.strerror
    if port is None:
        raise ResearchError(f"no free port from {first_port} to {candidates[-1]}")
    raise ResearchError(
        f"cannot listen on port {port}: {reason}", "leave out --port, or choose another"
    )
