"""Time processes, alternating so that all see the same load."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from common.errors import ExperimentError
from common.utils.paths import REPOSITORY_ROOT

# Compile byte code first, which users' later calls would not repeat.
_UNUSUAL = ("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED")


def time_processes(
    commands: Mapping[str, Sequence[str]], repetitions: int, variables: Mapping[str, str]
) -> dict[str, list[float]]:
    """{name: milliseconds of each repetition}; a first round, which fills caches, does not count."""
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(repetitions + 1):
        for name, command in commands.items():
            started = time.perf_counter()
            run_process(command, variables)
            times[name].append(1e3 * (time.perf_counter() - started))
    return {name: found[1:] for name, found in times.items()}


def run_process(command: Sequence[str], variables: Mapping[str, str]) -> str:
    """Output of a process. Raises ExperimentError if it fails."""
    usual = {key: value for key, value in variables.items() if key not in _UNUSUAL}
    result = subprocess.run(
        command, cwd=REPOSITORY_ROOT, env=usual, capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        print(result.stderr, file=sys.stderr)
        raise ExperimentError(f"a measurement failed: {' '.join(command)}")
    return result.stdout
