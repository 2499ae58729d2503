"""An S3 server on loopback, as much of the protocol as Arrow's client speaks (checked against moto).

Objects are a dict; uploads in parts, listing, HEAD, and GET with ranges. Signatures are not checked.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

_MODIFIED = "Sat, 21 Nov 2026 00:00:00 GMT"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    objects: dict[str, bytes]
    parts: dict[str, dict[int, bytes]]

    def _answer(self, code: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _target(self) -> tuple[str, str, dict[str, list[str]]]:
        split = urlsplit(self.path)
        _, bucket, *key = unquote(split.path).split("/", 2)
        return bucket, "".join(key), parse_qs(split.query, keep_blank_values=True)

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        else:
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
        if "aws-chunked" in self.headers.get("Content-Encoding", ""):
            body = _unchunk(body)
        return body

    def do_PUT(self) -> None:
        _, key, query = self._target()
        body = self._body()
        if "uploadId" in query:
            self.parts[query["uploadId"][0]][int(query["partNumber"][0])] = body
        elif key:
            self.objects[key] = body
        self._answer(200, ETag='"etag"')

    def do_POST(self) -> None:
        bucket, key, query = self._target()
        self._body()
        if "uploads" in query:
            self.parts[key] = {}
            root, inner = "InitiateMultipartUploadResult", f"<UploadId>{escape(key)}</UploadId>"
        else:
            parts = self.parts.pop(query["uploadId"][0])
            self.objects[key] = b"".join(parts[number] for number in sorted(parts))
            root, inner = "CompleteMultipartUploadResult", "<ETag>etag</ETag>"
        names = f"<Bucket>{bucket}</Bucket><Key>{escape(key)}</Key>"
        self._answer(200, f"<{root}>{names}{inner}</{root}>".encode())

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        _, key, query = self._target()
        if "list-type" in query:
            self._list(query.get("prefix", [""])[0])
        elif key not in self.objects:
            self._answer(
                404, b"" if self.command == "HEAD" else b"<Error><Code>NoSuchKey</Code></Error>"
            )
        else:
            content, code = self.objects[key], 200
            if match := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
                content, code = content[int(match[1]) : int(match[2]) + 1], 206
            headers = {"ETag": '"etag"', "Last_Modified": _MODIFIED}
            if self.command == "HEAD":
                self._answer(code, Content_Length=str(len(content)), **headers)
            else:
                self._answer(code, content, **headers)

    def _list(self, prefix: str) -> None:
        entries = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(content)}</Size>"
            "<LastModified>2026-11-21T00:00:00.000Z</LastModified></Contents>"
            for key, content in sorted(self.objects.items())
            if key.startswith(prefix)
        )
        body = f"<ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>"
        self._answer(200, body.encode())

    def log_message(self, *arguments: object) -> None:
        pass


def _unchunk(body: bytes) -> bytes:
    """Of Amazon's own chunks: `<size>[;signature]\\r\\n<bytes>\\r\\n ... 0\\r\\n<checksums>`."""
    content, at = b"", 0
    while True:
        end = body.index(b"\r\n", at)
        size = int(body[at:end].split(b";")[0], 16)
        if size == 0:
            return content
        content += body[end + 2 : end + 2 + size]
        at = end + 2 + size + 2


@contextmanager
def s3_server() -> Iterator[tuple[str, dict[str, bytes]]]:
    """(the URI of a folder in it, its objects by key)"""
    objects: dict[str, bytes] = {}
    handler = type("Handler", (_Handler,), {"objects": objects, "parts": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    where = f"endpoint_override=127.0.0.1:{server.server_port}&scheme=http&region=us-east-1"
    try:
        yield f"s3://lab/experiments?{where}", objects
    finally:
        server.shutdown()
        server.server_close()
