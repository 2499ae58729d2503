"""A small Hugging Face hub on 127.0.0.1, for tests with the real clients and no network.

    with HubDouble() as hub:
        hub.add("dataset", "owner/name", {"data/train.jsonl": b"..."})
        download_dataset("owner/name", endpoint=hub.url)

It speaks what `huggingface_hub` and `datasets` ask for: repository info, file tree, paths-info, auth-check,
and `resolve` with HEAD, GET, ETag, X-Repo-Commit and Range. As on the real hub, large file types (LFS) are
redirected to a second server, the "CDN", with X-Linked-Etag and X-Linked-Size. `cut` breaks a connection
half-way. What it speaks for uploads is in hub_uploads.py. Every request is kept in `requests`, with the number of body bytes that were sent.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import struct
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests import hub_uploads
from tests.hub_uploads import LFS_SUFFIXES, Refused, git_sha


@dataclass
class Repository:
    kind: str  # "model" or "dataset"
    name: str  # "owner/name"
    token: str | None  # the only token that opens it; None: public
    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def info(self, commit: str) -> dict[str, Any]:
        files = [{"rfilename": path} for path in self.commits[commit]]
        gated = "manual" if self.token else False
        return {
            "id": self.name,
            "sha": commit,
            "gated": gated,
            "private": self.private,
            "siblings": files,
        }


@dataclass
class Request:
    method: str
    path: str
    range: str | None
    status: int = 0
    body_bytes: int = 0


@dataclass
class Cut:
    after_bytes: int
    times: int
    reset: bool  # a TCP reset (the client gives up) instead of an early end (the client asks for the rest)


class HubDouble:
    """The server: start it with `with`, fill it with `add`, look at `requests`."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.requests: list[Request] = []
        self.cuts: dict[str, Cut] = {}
        self.corrupted: set[str] = set()  # files that are sent with a wrong last byte
        self.claimed: dict[str, int] = {}  # the sizes that listings tell of these files
        self.moved: dict[tuple[str, str], str] = {}
        self.writers: dict[str, str] = {}  # token -> the owner in whose name it may write
        self.blobs: dict[str, tuple[str, bytes]] = (
            {}
        )  # sha256 -> (file name, content), served by the CDN
        handler = type("BoundHandler", (_Handler,), {"hub": self})
        self._hub = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._cdn = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._hub.server_port}"
        self.cdn_url = f"http://127.0.0.1:{self._cdn.server_port}"

    def __enter__(self) -> HubDouble:
        for server in (self._hub, self._cdn):
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for server in (self._hub, self._cdn):
            server.shutdown()
            server.server_close()

    def add(
        self,
        kind: str,
        name: str,
        files: dict[str, bytes] | Path,
        revision: str = "main",
        token: str | None = None,
    ) -> str:
        """Commit `files` (or a folder's) as all of `revision` of a repository; return the commit's sha."""
        if isinstance(files, Path):
            found = sorted(path for path in files.rglob("*") if path.is_file())
            files = {path.relative_to(files).as_posix(): path.read_bytes() for path in found}
        repository = self.repositories.setdefault((kind, name), Repository(kind, name, token))
        digest = hashlib.sha1(f"{kind} {name} {len(repository.commits)}".encode())
        for path, content in sorted(files.items()):
            digest.update(path.encode() + content)
            if path.endswith(LFS_SUFFIXES):
                self.blobs[hashlib.sha256(content).hexdigest()] = (path, content)
        commit = digest.hexdigest()
        repository.commits[commit] = files
        repository.refs[revision] = commit
        return commit

    def move(self, kind: str, old: str, new: str) -> None:
        """Answer for `old` with a redirect to `new`, as the hub does for renamed repositories."""
        self.moved[(kind, old)] = new

    def cut(self, path: str, after_bytes: int, times: int = 1, reset: bool = False) -> None:
        """Break the connection of the next `times` downloads of the file `path` after `after_bytes`."""
        self.cuts[path] = Cut(after_bytes, times, reset)

    def downloads(self, path: str) -> list[Request]:
        """The GET requests whose path ends in `path` and that were answered with (part of) the file."""
        wanted = [r for r in self.requests if r.method == "GET" and r.status in (200, 206)]
        return [request for request in wanted if request.path.endswith(path)]


class _Handler(BaseHTTPRequestHandler):
    hub: HubDouble
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: requests are kept in `hub.requests`."""

    def do_GET(self) -> None:
        self._handle(head=False)

    def do_HEAD(self) -> None:
        self._handle(head=True)

    def do_POST(self) -> None:
        self._handle(head=False)

    def do_PUT(self) -> None:
        self._handle(head=False)

    def _handle(self, head: bool) -> None:
        self.head = head
        self.parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        form = self.headers.get("Content-Type") == "application/x-www-form-urlencoded"
        body = self.body.decode() if form else ""
        self.query = parse_qs(urlsplit(self.path).query + "&" + body)
        self.record = Request(self.command, unquote(self.path), self.headers.get("Range"))
        self.hub.requests.append(self.record)
        try:
            if hub_uploads.handles(self.command, self.parts):
                self._send_json(hub_uploads.answer(self.hub, self))
            elif self.parts[0] == "cdn":
                self._send_file(*self.hub.blobs[self.parts[1]], {"ETag": f'"{self.parts[1]}"'})
            elif self.parts[0] == "website":  # `<url>/website` is an address that is no hub
                self._send(200, b"<html></html>", {"Content-Type": "text/html"})
            elif self.parts[0] == "api" and len(self.parts) > 2:
                self._api(self.parts[1].removesuffix("s"), self.parts[2:])
            else:
                kind = "dataset" if self.parts[0] == "datasets" else "model"
                self._resolve(kind, self.parts[1:] if kind == "dataset" else self.parts)
        except Refused as refused:
            headers = {"X-Error-Code": refused.code, "X-Error-Message": refused.message}
            self._send_json({"error": refused.message} | refused.more, refused.status, headers)

    def _api(self, kind: str, parts: list[str]) -> None:
        """/api/<kind>s/<owner>/<name>[/revision/<r> | /tree/<r>/<path> | /paths-info/<r> | /auth-check]"""
        moved = self.hub.moved.get((kind, parts[0]))
        if moved:
            rest = "".join(f"/{part}" for part in parts[1:])
            return self._send(307, b"", {"Location": f"/api/{kind}s/{moved}{rest}"})
        repository = self._repository(kind, "/".join(parts[:2]))
        call, revision, *path = [*parts[2:], "", ""]
        if call in ("", "revision"):
            return self._send_json(repository.info(self._commit(repository, revision or "main")))
        if call == "auth-check":
            self._check_token(repository)
            return self._send_json({})
        if call not in ("tree", "paths-info"):
            raise Refused(404, "", "no such page")
        files = repository.commits[self._commit(repository, revision)]
        if call == "tree":
            prefix = "/".join(part for part in path if part)
            recursive = self.query.get("recursive", ["false"])[0].lower() == "true"
            entries = _tree(files, prefix, recursive)
            for entry in entries:
                entry["size"] = self.hub.claimed.get(entry["path"], entry["size"])
            return self._send_json(entries)
        asked = self.query.get("paths", [])
        entries = [entry for entry in _tree(files, "", recursive=True) if entry["path"] in asked]
        return self._send_json(entries)

    def _resolve(self, kind: str, parts: list[str]) -> None:
        """[/datasets]/<owner>/<name>/resolve/<revision>/<file>"""
        if len(parts) < 5 or parts[2] != "resolve":
            raise Refused(404, "", "no such page")
        repository = self._repository(kind, "/".join(parts[:2]))
        commit = self._commit(repository, parts[3])
        self._check_token(repository)
        path = "/".join(parts[4:])
        content = repository.commits[commit].get(path)
        if content is None:
            raise Refused(404, "EntryNotFound", "Entry not found")
        headers = {"X-Repo-Commit": commit}
        if path.endswith(LFS_SUFFIXES):
            sha = hashlib.sha256(content).hexdigest()
            headers |= {"X-Linked-Etag": f'"{sha}"', "X-Linked-Size": str(len(content))}
            location = f"{self.hub.cdn_url}/cdn/{sha}/{path}"
            return self._send(302, b"", headers | {"Location": location})
        self._send_file(path, content, headers | {"ETag": f'"{git_sha(content)}"'})

    def _repository(self, kind: str, name: str) -> Repository:
        repository = self.hub.repositories.get((kind, name))
        if repository is None:
            raise Refused(
                401, "RepoNotFound", "Repository not found"
            )  # 401, as the hub says to guests
        return repository

    def _commit(self, repository: Repository, revision: str) -> str:
        commit = repository.refs.get(revision, revision)
        if commit not in repository.commits:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def _check_token(self, repository: Repository) -> None:
        given = self.headers.get("Authorization")
        if repository.token and given != f"Bearer {repository.token}":
            status = 403 if given else 401
            raise Refused(status, "GatedRepo", f"Access to {repository.name} is restricted")

    def _send_file(self, path: str, content: bytes, headers: dict[str, str]) -> None:
        headers |= {"Accept-Ranges": "bytes"}
        if path in self.hub.corrupted:
            content = content[:-1] + bytes([content[-1] ^ 1])
        status, start = 200, 0
        if self.record.range and not self.head:
            first, _, last = self.record.range.removeprefix("bytes=").partition("-")
            end = min(int(last) + 1, len(content)) if last else len(content)
            status, start = 206, int(first)
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
            content = content[:end]
        cut = self.hub.cuts.get(path)
        if cut and cut.times and not self.head:
            cut.times -= 1
            self._send(status, content[start:], headers, cut)
        else:
            self._send(status, content[start:], headers)

    def _send_json(
        self, value: Any, status: int = 200, headers: dict[str, str] | None = None
    ) -> None:
        self._send(
            status,
            json.dumps(value).encode(),
            {"Content-Type": "application/json"} | (headers or {}),
        )

    def _send(
        self, status: int, body: bytes, headers: dict[str, str], cut: Cut | None = None
    ) -> None:
        self.record.status = status
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.head:
            return
        sent = body[: cut.after_bytes] if cut else body
        self.record.body_bytes = len(sent)
        self.wfile.write(sent)
        if cut:
            self.close_connection = True
            if cut.reset:  # closing a socket that does not linger sends a reset
                linger_for_no_time = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_for_no_time)
                os.close(self.connection.detach())


def _tree(files: dict[str, bytes], prefix: str, recursive: bool) -> list[dict[str, Any]]:
    """The hub's listing of the folder `prefix` ("" is the root): files and folders."""
    base = f"{prefix}/" if prefix else ""
    inside = {path: content for path, content in files.items() if path.startswith(base)}
    if not inside:
        raise Refused(404, "EntryNotFound", f"{prefix} does not exist")
    entries: dict[str, dict[str, Any]] = {}
    for path, content in sorted(inside.items()):
        parts = path.removeprefix(base).split("/")
        for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
            folder = base + "/".join(parts[:depth])
            oid = hashlib.sha1(folder.encode()).hexdigest()
            entries[folder] = {"type": "directory", "path": folder, "oid": oid, "size": 0}
        if recursive or len(parts) == 1:
            entry = {"type": "file", "path": path, "oid": git_sha(content), "size": len(content)}
            if path.endswith(LFS_SUFFIXES):
                sha = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"oid": sha, "size": len(content), "pointerSize": 130}
            entries[path] = entry
    return list(entries.values())
