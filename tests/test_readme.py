"""The commands and the Python that README.md shows are run as they stand there, in order."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.budget import budget
from tests.fork_server import ForkServer

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# This test is part of the first; the second serves until it is stopped, and has a test of its own.
NOT_RUN = ["make test", "python tools/dashboard.py"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Whole shell commands: continued lines and open quotes are joined, comments dropped."""
    found, pending = [], ""
    for line in "\n".join(blocks("bash")).splitlines():
        if not pending and (not line or line.startswith("#")):
            continue
        pending += line + "\n"
        try:
            if shlex.split(pending) and not line.endswith("\\"):
                found.append(pending.strip())
                pending = ""
        except ValueError:
            continue  # a quote is still open
    assert not pending
    return found


@pytest.mark.attack
@pytest.mark.slow
def test_every_command_and_snippet_of_the_readme_works(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    """In `make attack` each is typed into a shell."""
    in_project_venv = Path(sys.prefix) == ROOT / ".venv"
    environment = os.environ | {
        "RESEARCH_ASSETS_DIR": str(tmp_path / "assets"),
        "OVERRIDES": "training.max_steps=50",  # the one thing that is shorter than a user's quickstart
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }

    def run(command: str) -> subprocess.CompletedProcess[str]:
        first, *words = shlex.split(command)
        starts: dict[str, list[str]] = {"python": [], "cli": ["-m", "tools.cli"]}
        if first in starts and "$" not in command and not budget(False, True):
            return fork_server.run(*starts[first], *words, cwd=ROOT, env=environment)
        options = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True}
        return subprocess.run(command, shell=True, **options)

    quickstart = [
        "python projects/custom_transformer/train.py --config configs/quickstart.yaml $OVERRIDES",
        "python tools/query_experiments.py --best perplexity",
    ]
    shown = commands()
    assert shown[:2] == ["make quickstart", "make test"]
    for command in shown:
        if command in NOT_RUN:
            continue
        # In another environment than .venv, make would build one: run what it runs.
        steps = [command] if in_project_venv or command != "make quickstart" else quickstart
        for step in steps:
            result = run(step)
            assert result.returncode == 0, f"{step}\n{result.stdout}\n{result.stderr}"
    for snippet in blocks("python"):
        snippet = snippet.replace("assets/outputs", str(tmp_path))
        result = fork_server.run("-c", snippet, cwd=ROOT, env=environment)
        assert result.returncode == 0, f"{snippet}\n{result.stderr}"
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_every_file_the_map_names_is_there() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / link).exists(), link
    for path in re.findall(r"`((?:tools|projects|common)/[\w/]+\.py)`", README):
        assert (ROOT / path).exists(), path
