"""Keys of the API. Only their SHA-256 is stored; a key has 256 random bits, so that no salt is needed."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from pathlib import Path

from common.errors import ExperimentError
from common.utils.files import read_json, write_json_atomic
from common.utils.paths import get_service_dir


def keys_path() -> Path:
    """The file of hashed keys."""
    return get_service_dir() / "keys.json"


def new_key() -> str:
    """Create a key and store its hash; the key itself is shown once."""
    key = secrets.token_urlsafe(32)
    write_json_atomic(keys_path(), {"sha256": [*_hashes(), _hash(key)]})
    keys_path().chmod(0o600)
    return key


def has_keys() -> bool:
    """Whether any key was created."""
    return bool(_hashes())


class KeyRing:
    """The stored hashes, read again when the file changes."""

    def __init__(self) -> None:
        self._stamp = -1
        self._known: list[str] = []

    def accepts(self, key: str) -> bool:
        """Whether `key` is one of ours; takes as long for a wrong one."""
        try:
            stamp = keys_path().stat().st_mtime_ns
        except FileNotFoundError:
            return False
        if stamp != self._stamp:
            self._known, self._stamp = _hashes(), stamp
        digest = _hash(key)
        return any([hmac.compare_digest(digest, known) for known in self._known])


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _hashes() -> list[str]:
    if not keys_path().exists():
        return []
    found = read_json(keys_path(), ExperimentError)
    hashes = found.get("sha256") if isinstance(found, dict) else None
    return [str(known) for known in hashes] if isinstance(hashes, list) else []
