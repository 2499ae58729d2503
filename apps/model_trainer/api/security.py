"""What happens to every request before an endpoint sees it: its id and its key.

Decides on `scope["path"]` alone, never on a URL rebuilt from headers of the client.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from apps.model_trainer.errors import STATUS, AppError, ErrorCode

OPEN_PATHS = frozenset({"/healthz", "/readyz"})
LARGEST_BODY = 2**20  # bytes, of JSON
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Gate:
    """ASGI middleware: gives each request an id, refuses those without a key."""

    def __init__(self, app: ASGIApp, accepts: Callable[[str], bool]) -> None:
        self._app, self._accepts = app, accepts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = MutableHeaders(scope=message)
                added["X-Request-ID"] = request_id
                added["X-Content-Type-Options"] = "nosniff"
                added.setdefault("Cache-Control", "no-store")
            await send(message)

        if refusal := self._refusal(scope["path"], headers):
            await error_response(refusal, request_id)(scope, receive, send_with_id)
            return
        await self._app(scope, receive, send_with_id)

    def _refusal(self, path: str, headers: Headers) -> AppError | None:
        if path not in OPEN_PATHS and not self._accepts(_key_of(headers)):
            return AppError(
                ErrorCode.UNAUTHENTICATED,
                "a key is needed",
                "send it as X-Api-Key or as Authorization: Bearer; `python tools/service.py --new-key` makes one",
            )
        return None


def _key_of(headers: Headers) -> str:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return headers.get("x-api-key", "") or (token.strip() if scheme.lower() == "bearer" else "")


def error_response(error: AppError, request_id: str) -> JSONResponse:
    """The response of an error."""
    headers = {"WWW-Authenticate": "Bearer"} if error.kind is ErrorCode.UNAUTHENTICATED else {}
    return JSONResponse(
        {
            "code": error.kind.value,
            "message": error.message,
            "hint": error.hint,
            "request_id": request_id,
        },
        status_code=STATUS[error.kind],
        headers=headers,
    )
