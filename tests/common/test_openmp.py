"""libgomp is told to spin briefly, before torch loads it; whoever has chosen otherwise is left alone."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys

import pytest

from common.utils.paths import REPOSITORY_ROOT
from tests.budget import repeat

# Only the library of torch, whose import takes seconds; it reads its variables when it is loaded.
LIBGOMP = """
import common, ctypes, importlib.util, pathlib
(folder,) = importlib.util.find_spec("torch").submodule_search_locations
for path in pathlib.Path(folder).rglob("libgomp*"):
    ctypes.CDLL(path)
"""


@functools.cache
def spin_count(program: str, **environment: str) -> int:
    """What libgomp itself has read when `program` imports torch."""
    inherited = {
        key: value
        for key, value in os.environ.items()
        if key not in {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}
    }
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY_ROOT,
        env=inherited | {"OMP_DISPLAY_ENV": "verbose"} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    counts = re.findall(r"GOMP_SPINCOUNT = '(\d+)'", result.stderr)
    if not counts:
        pytest.skip("this torch has no libgomp")
    return int(counts[0])


@pytest.mark.slow
@repeat("module", ["projects.baseline.train, torch", "common.training.trainer"])
def test_threads_that_wait_leave_the_core_to_others(module: str) -> None:
    assert spin_count("import torch") > 100_000  # libgomp's own: what this is about
    assert spin_count(f"import {module}") == 3000


@pytest.mark.parametrize(
    ("environment", "spins"),
    [
        ({"GOMP_SPINCOUNT": "77"}, 77),
        ({"OMP_WAIT_POLICY": "passive"}, 0),
        ({"OMP_NUM_THREADS": "1"}, 3000),
    ],
)
def test_a_wait_policy_of_the_user_stays(environment: dict[str, str], spins: int) -> None:
    assert spin_count(LIBGOMP, **environment) == spins
