"""Protection of a local server against other web pages.

A web page can send requests to 127.0.0.1, and by DNS rebinding even read the responses. So only
host names of this machine are accepted, a POST must be JSON, which forms cannot send, and come from
this page, and the page runs only its own scripts.
"""

from __future__ import annotations

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

ALLOWED_HOSTS = ["127.0.0.1", "localhost"]

# Requirements of plotly.js: an empty <style>, which it fills by script (the hash is that of the
# empty string), style attributes (superscripts), and blob: and data: URLs for saved images. It
# needs no eval for lines. The style of its maps, which we do not use, is blocked, with one message
# in the console.
_EMPTY_STYLE = "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='"
_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        f"style-src 'self' {_EMPTY_STYLE}",
        "style-src-attr 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class OwnPageOnly:
    """ASGI middleware: rejects POST requests from other pages, and adds the headers above."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                headers.setdefault("Cache-Control", "no-cache")
            await send(message)

        app = self._app
        if scope["method"] not in ("GET", "HEAD") and (reason := _refusal(Headers(scope=scope))):
            app = JSONResponse({"error": reason, "hint": ""}, status_code=403)
        await app(scope, receive, send_with_headers)


def _refusal(headers: Headers) -> str | None:
    """Reason to reject a POST request; None if it is accepted."""
    origin = headers.get("origin")
    if origin is not None and origin != f"http://{headers.get('host')}":
        return f"requests from {origin} are refused"
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return "requests from other sites are refused"
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    return None if kind == "application/json" else "the body must be application/json"
