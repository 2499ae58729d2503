"""A temporary environment with the other experiment trackers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from common.errors import MissingPackageError

# {package: its loggers in log_calls.py}
PEERS = {
    "mlflow": ("mlflow", "mlflow_async", "mlflow_files"),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
    "tensorboardX": ("tensorboard",),
    "aim": ("aim",),
}
ABSENT = "cannot be installed"  # in the cell of a peer
_VERSIONS = """
import importlib.metadata as m, json, sys
found = {d.metadata["Name"].lower(): d.version for d in m.distributions()}
print(json.dumps({name: found[name.lower()] for name in sys.argv[1:] if name.lower() in found}))
"""


class PeerEnvironment(NamedTuple):
    """`missing`: the reason for each peer that could not be installed."""

    python: Path
    versions: dict[str, str]
    missing: dict[str, str]


def default_folder() -> Path:
    return Path(tempfile.gettempdir()) / "experiment-store-peers"


def prepare_peers(folder: Path) -> PeerEnvironment:
    """Create the environment if necessary, and install missing packages.

    Raises MissingPackageError if Python cannot create an environment.
    """
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        make = ["uv", "venv", "--quiet", "--python", sys.executable, str(folder)]
        result = _run(make if shutil.which("uv") else [sys.executable, "-m", "venv", str(folder)])
        if result.returncode != 0:
            raise MissingPackageError(
                f"cannot create an environment for the peers: {_last_line(result)}",
                "leave them out with --no-peers",
            )
    versions = _versions(python)
    missing = {}
    for package in PEERS:
        if package in versions:
            continue
        print(f"installing {package} into {folder}", file=sys.stderr)
        pip = [str(python), "-m", "pip", "install", "--quiet", package]
        uv = ["uv", "pip", "install", "--quiet", "--python", str(python), package]
        result = _run(uv if shutil.which("uv") else pip)
        if result.returncode != 0:
            missing[package] = _last_line(result)
    return PeerEnvironment(python, _versions(python), missing)


def peer_variables() -> dict[str, str]:
    """Environment variables of a peer: ours without our paths, and offline."""
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return kept | {"DO_NOT_TRACK": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}


def _versions(python: Path) -> dict[str, str]:
    result = _run([str(python), "-c", _VERSIONS, *PEERS])
    versions: dict[str, str] = json.loads(result.stdout)
    return versions


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _last_line(result: subprocess.CompletedProcess[str]) -> str:
    return (result.stderr.strip() or f"exit code {result.returncode}").splitlines()[-1]
