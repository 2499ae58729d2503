"""What has to be known to run an experiment again: code, configuration, seed, versions, machine."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from common.utils.paths import REPOSITORY_ROOT

_PACKAGES = ("torch", "numpy", "safetensors", "tokenizers", "transformers", "datasets", "pyarrow")


def now() -> str:
    """The present moment, ISO 8601 with the offset from UTC."""
    return datetime.now().astimezone().isoformat(timespec="milliseconds")


def create_manifest(
    name: str, *, project: str, config: dict[str, Any], seed: int | None, tags: list[str]
) -> dict[str, Any]:
    """The facts of a run at its start; every value can be written as JSON."""
    return {
        "name": name,
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
    }


def git_state() -> dict[str, Any]:
    """`git_commit` and `git_dirty` (uncommitted changes) of this repository; None outside of git."""
    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain") if commit else None
    return {"git_commit": commit, "git_dirty": bool(changes) if changes is not None else None}


def _git(*arguments: str) -> str | None:
    try:
        result = subprocess.run(
            ["git", *arguments], cwd=REPOSITORY_ROOT, capture_output=True, text=True, timeout=10
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None  # git is not installed or hangs: the manifest says so with a null
    return result.stdout.strip() if result.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
