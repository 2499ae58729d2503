"""The half of the hub double that takes uploads: what `HfApi.create_repo` and `upload_folder` ask for.

    POST /api/repos/create                            name, owner, visibility
    POST /api/validate-yaml                           the front matter of a README.md
    POST /api/models/<o>/<n>/preupload/<revision>     which files go into the commit, which to LFS
    POST /<o>/<n>.git/info/lfs/objects/batch          where to put the content of LFS files
    PUT  <CDN>/upload/<sha256>                        the content; its checksum has to be right
    POST /<o>/<n>.git/info/lfs/objects/verify
    POST /api/models/<o>/<n>/commit/<revision>        lines of JSON: header, files, LFS files, deletions

The Xet protocol, in which the client uploads by default, is not spoken: HF_HUB_DISABLE_XET=1.
"""

from __future__ import annotations

import base64
import hashlib
import json
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from tests.hub_double import HubDouble, Repository

LFS_SUFFIXES = (".parquet", ".safetensors", ".bin")
FIRST_FILES = {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}


class Refused(Exception):
    """An error of the hub: status, X-Error-Code, message, and what else its JSON has."""

    def __init__(self, status: int, code: str, message: str, **more: str) -> None:
        self.status, self.code, self.message, self.more = status, code, message, more


def git_sha(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def handles(method: str, parts: list[str]) -> bool:
    """Whether the request is one of the above."""
    if method == "PUT":
        return True
    calls = {"create", "validate-yaml", "batch", "verify"}
    return method == "POST" and (parts[-1] in calls or parts[-2] in {"preupload", "commit"})


def answer(hub: HubDouble, request: Any) -> dict[str, Any]:
    """What the hub says, as JSON; raises Refused. `request` has `parts`, `headers` and `body`."""
    parts, body = request.parts, request.body
    if request.command == "PUT":
        return _store(hub, parts[-1], body)
    if parts[-1] == "validate-yaml":
        return _validate(json.loads(body)["content"])
    owner = _writer(hub, request.headers.get("Authorization"))
    if parts[-1] == "create":
        return _create(hub, owner, json.loads(body))
    name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2]).removesuffix(".git")
    repository = _writable(hub, owner, name)
    if parts[-1] == "batch":
        return {
            "transfer": "basic",
            "objects": [_place(hub, name, o) for o in json.loads(body)["objects"]],
        }
    if parts[-1] == "verify":
        if json.loads(body)["oid"] not in hub.blobs:
            raise Refused(404, "", "no such object")
        return {}
    if parts[-2] == "preupload":
        files = repository.commits[repository.refs[parts[-1]]]
        return {"files": [_mode(files, file) for file in json.loads(body)["files"]]}
    return _commit(hub, repository, parts[-1], body)


def _writer(hub: HubDouble, authorization: str | None) -> str:
    owner = hub.writers.get((authorization or "").removeprefix("Bearer "))
    if owner is None:
        raise Refused(401, "", "Invalid credentials in Authorization header")
    return owner


def _writable(hub: HubDouble, owner: str, name: str) -> Repository:
    if name.partition("/")[0] != owner:
        raise Refused(403, "", f"You have no write access to {name}")
    repository = hub.repositories.get(("model", name))
    if repository is None:
        raise Refused(404, "RepoNotFound", "Repository not found")
    return repository


def _create(hub: HubDouble, owner: str, asked: dict[str, Any]) -> dict[str, Any]:
    name = f"{asked['organization'] or owner}/{asked['name']}"
    if name.partition("/")[0] != owner:
        raise Refused(403, "", f'You have no rights to create a model under the namespace "{name}"')
    if ("model", name) in hub.repositories:
        raise Refused(409, "", "You already created this model repo", url=f"{hub.url}/{name}")
    hub.add("model", name, dict(FIRST_FILES))
    private = asked.get("private") or asked.get("visibility") == "private"
    hub.repositories["model", name].private = bool(private)
    return {"name": name, "url": f"{hub.url}/{name}"}


def _validate(text: str) -> dict[str, Any]:
    empty, _, rest = text.partition("---\n")
    try:
        front_matter = yaml.safe_load(rest.partition("\n---")[0]) if not empty else None
    except yaml.YAMLError as error:
        raise Refused(400, "", f"invalid YAML: {error}") from error
    errors = [] if isinstance(front_matter, dict) else [{"message": "no front matter"}]
    return {"errors": errors, "warnings": []}


def _mode(files: dict[str, bytes], file: dict[str, Any]) -> dict[str, Any]:
    path = file["path"]
    assert len(base64.b64decode(file["sample"])) == min(512, file["size"])
    mode = "lfs" if path.endswith(LFS_SUFFIXES) else "regular"
    oid = None
    if path in files:
        content = files[path]
        oid = hashlib.sha256(content).hexdigest() if mode == "lfs" else git_sha(content)
    return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid}


def _place(hub: HubDouble, name: str, wanted: dict[str, Any]) -> dict[str, Any]:
    if wanted["oid"] in hub.blobs:
        return wanted
    upload = {"href": f"{hub.cdn_url}/upload/{wanted['oid']}"}
    verify = {"href": f"{hub.url}/{name}.git/info/lfs/objects/verify"}
    return wanted | {"actions": {"upload": upload, "verify": verify}}


def _store(hub: HubDouble, oid: str, content: bytes) -> dict[str, Any]:
    if hashlib.sha256(content).hexdigest() != oid:
        raise Refused(400, "", "another checksum")
    hub.blobs[oid] = ("", content)
    return {}


def _commit(hub: HubDouble, repository: Repository, revision: str, body: bytes) -> dict[str, Any]:
    files = dict(repository.commits[repository.refs[revision]])
    for line in body.decode().splitlines():
        key, value = (json.loads(line)[part] for part in ("key", "value"))
        if key == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif key == "lfsFile":
            if value["oid"] not in hub.blobs:
                raise Refused(400, "", f"the content of {value['path']} was not uploaded")
            files[value["path"]] = hub.blobs[value["oid"]][1]
        elif key == "deletedFile":
            del files[value["path"]]
        elif key != "header":
            raise Refused(400, "", f"unknown key {key}")
    commit = hub.add("model", repository.name, files, revision)
    url = f"{hub.url}/{repository.name}/commit/{commit}"
    return {"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""}
