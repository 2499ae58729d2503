"""Install accelerate, which Hugging Face's Trainer needs in addition to our environment."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tools.benchmarks.results import say


def default_folder() -> Path:
    return Path(tempfile.gettempdir()) / "huggingface-trainer-peer"


def prepare_accelerate(folder: Path) -> Path | None:
    """Install accelerate into `folder`, outside of our environment, which has all its dependencies.

    Returns None, and prints the reason, if it cannot be installed.
    """
    if (folder / "accelerate").is_dir():
        return folder
    say(f"installing accelerate into {folder}")
    target = ["--quiet", "--no-deps", "--target", str(folder), "accelerate"]
    uv = ["uv", "pip", "install", "--python", sys.executable, *target]
    pip = [sys.executable, "-m", "pip", "install", *target]
    result = subprocess.run(
        uv if shutil.which("uv") else pip, capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        reason = (result.stderr.strip() or f"exit code {result.returncode}").splitlines()[-1]
        say(f"without Hugging Face's Trainer: accelerate cannot be installed: {reason}")
        return None
    return folder
