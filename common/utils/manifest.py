"""The manifest of a run, for reproduction: code, configuration, seed, versions, machine."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from types import NoneType
from typing import Any

from common.utils.paths import REPOSITORY_ROOT
from common.utils.plain import clean_text, is_text, to_plain
from common.utils.secrets import without_secrets

_PACKAGES = ("torch", "numpy", "safetensors", "tokenizers", "transformers", "datasets", "pyarrow")


def now() -> str:
    """The current time, ISO 8601 with UTC offset."""
    return datetime.now().astimezone().isoformat(timespec="milliseconds")


def create_manifest(
    name: str, *, project: str, config: dict[str, Any], seed: int | None, tags: list[str]
) -> dict[str, Any]:
    """Create the manifest of a new run, with a unique id."""
    import platform  # lazy: 2 ms

    return {
        "name": name,
        ID: os.urandom(16).hex(),
        "status": "running",
        "project": project,
        "started": now(),
        "finished": None,
        "duration": None,
        "config": config,
        "seed": seed,
        "tags": tags,
        "parameters": None,
        "tokens": None,
        **git_state(),
        "host": platform.node(),
        "pid": os.getpid(),
        "argv": sys.argv,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "environment": environment_fingerprint(),
    }


ID = "experiment_id"


def identity(manifest: Mapping[str, Any]) -> str:
    """The id of an experiment (32 hex digits), which renaming and copying preserve.

    For experiments of earlier versions: a hash of facts that never change after the start.
    """
    found = manifest.get(ID)
    if isinstance(found, str) and re.fullmatch("[0-9a-f]{32}", found):
        return found
    from hashlib import sha256  # loads OpenSSL: 10 ms

    start = [manifest.get(key) for key in ("name", "started", "host", "argv")]
    return sha256(json.dumps(start).encode()).hexdigest()[:32]


def unique_name(name: str, identifier: str) -> str:
    """The name of an experiment if another one has its name. Names given by users have no @."""
    return f"{name}@{identifier[:8]}"


# The facts in the `runs` table, and their types.
_KINDS: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "status": (str,),
    "project": (str,),
    "started": (str,),
    "finished": (str, NoneType),
    "duration": (float, int, NoneType),
    "git_commit": (str, NoneType),
    "seed": (int, NoneType),
    "host": (str, NoneType),
    "parameters": (int, NoneType),
    "tokens": (int, NoneType),
    "tags": (list,),
}


def check_manifest(manifest: Any) -> dict[str, Any]:
    """Validate `manifest` for the store. Raises ValueError with the first problem."""
    if not isinstance(manifest, dict):
        raise ValueError("it is not a manifest of an experiment")
    for key, kinds in _KINDS.items():
        value = manifest.get(key)
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise ValueError(f"its '{key}' cannot be {value!r}")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ValueError(f"its '{key}' does not fit in 64 bits: {value}")
    for key in ("started", "finished"):
        if manifest[key] is not None and datetime.fromisoformat(manifest[key]).tzinfo is None:
            raise ValueError(f"its '{key}' has no time zone: {manifest[key]}")
    if not all(isinstance(tag, str) for tag in manifest["tags"]):
        raise ValueError(f"its 'tags' must be strings: {manifest['tags']}")
    return manifest


_SHOWN = (*_KINDS, "note")  # stored in SQLite and DuckDB, which take only valid text


def plain_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Convert `facts` of a manifest to JSON (see `to_plain`), with valid text in shown columns.

    Raises ValueError with the first one that cannot be stored.
    """
    plain = {str(key): to_plain(value, f"its '{key}'") for key, value in facts.items()}
    for key in _SHOWN:
        value = plain.get(key)
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and not is_text(text):
                raise ValueError(f"its '{key}' is not text (not UTF-8, or NUL): {text!r}")
    return plain


def clean_facts(manifest: dict[str, Any]) -> dict[str, Any]:
    """Escape invalid text in a `manifest` of an earlier version, see `clean_text`."""
    shown = {key: _clean(manifest[key]) for key in _SHOWN if key in manifest}
    return manifest | shown


def _clean(value: Any) -> Any:
    if isinstance(value, list):
        return [_clean(item) for item in value]
    return clean_text(value) if isinstance(value, str) else value


_MOST_DIFF_BYTES = 1_000_000


def git_state() -> dict[str, Any]:
    """`git_commit`, `git_dirty` (uncommitted changes) and `git_diff` (of tracked files, for `git
    apply`; None above 1 MB) of this repository; all None outside of git.

    Lines that look like secrets are removed from the diff and counted in `git_secrets`.
    """
    commit = _git("rev-parse", "HEAD")
    changes = _git(*_STATUS) if commit else None
    diff = _git(*_DIFF) if changes else changes
    if diff and len(diff) > _MOST_DIFF_BYTES:
        diff = None
    secrets = None if diff is None else 0
    if diff:
        diff, secrets = without_secrets(diff)
    return {
        "git_commit": commit.strip() if commit else None,
        "git_dirty": bool(changes) if changes is not None else None,
        "git_diff": diff,
        "git_secrets": secrets,
    }


# Set every format option, so that the user's configuration has no effect.
_STATUS = (
    *("status", "--porcelain=v1", "--untracked-files=normal", "--ignore-submodules=none"),
    *("--no-renames", "--no-ahead-behind"),
)
_DIFF = (
    *("diff", "--binary", "--no-ext-diff", "--no-textconv", "--no-color", "--no-renames"),
    *(
        "--no-relative",
        "--src-prefix=a/",
        "--dst-prefix=b/",
        "--unified=3",
        "--inter-hunk-context=0",
    ),
    *("--full-index", "--submodule=short", "--ignore-submodules=none", "HEAD", "--"),
)


@lru_cache(maxsize=1)
def environment_fingerprint() -> str:
    """16 hex digits, equal if Python, platform and all installed packages are the same."""
    import platform
    from hashlib import sha256
    from importlib.metadata import distributions

    packages = sorted({f"{found.name}=={found.version}" for found in distributions()})
    facts = [platform.python_version(), platform.platform(), *packages]
    return sha256("\n".join(facts).encode()).hexdigest()[:16]


def _git(*arguments: str) -> str | None:
    import subprocess  # lazy, for lists of experiments

    from common.utils.git import run_git

    try:
        result = run_git(*arguments, cwd=REPOSITORY_ROOT, timeout_seconds=10)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None  # git is not installed or hangs: recorded as null
    # A diff may contain any bytes.
    return result.stdout.decode(errors="surrogateescape") if result.returncode == 0 else None


def cpu_name() -> str:
    """The processor model, such as `AMD EPYC 9R14`, or else the architecture, such as `x86_64`."""
    import platform

    if sys.platform == "darwin":
        import subprocess

        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        found = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    else:
        cpuinfo = Path("/proc/cpuinfo")
        lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        found = names[0] if names else platform.processor()
    return found or platform.machine()


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version  # lazy: 20 ms

    try:
        return version(package)
    except PackageNotFoundError:
        return None
