"""What a command does not need it does not import: seconds for whoever types it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import common.utils
from common.experiments.catalogue import Catalogue
from common.utils import save_experiment, start_experiment
from common.utils.paths import REPOSITORY_ROOT

HEAVY = {"torch", "pandas", "duckdb", "transformers", "datasets", "matplotlib"}


def imported_by(*arguments: str, code: int = 0) -> set[str]:
    """The top-level packages that `python <arguments>` imports, from its own account of it."""
    command = [sys.executable, "-X", "importtime", *arguments]
    result = subprocess.run(
        command, cwd=REPOSITORY_ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == code, result.stderr[-2000:]
    lines = [line for line in result.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


def test_the_measurement_sees_what_is_imported() -> None:
    assert "duckdb" in imported_by("-c", "import duckdb")
    assert "duckdb" not in imported_by("-c", "import common.config")


SCRIPTS = sorted(
    str(path.relative_to(REPOSITORY_ROOT))
    for pattern in (
        "tools/*.py",
        "projects/baseline/*.py",
        "projects/custom_transformer/train.py",
        "papers/*/reproduce.py",
    )
    for path in REPOSITORY_ROOT.glob(pattern)
    if path.name != "__init__.py"
)


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_help_imports_nothing_heavy(script: str) -> None:
    assert not imported_by(script, "--help") & (HEAVY | {"pyarrow", "numpy"})


@pytest.mark.parametrize(
    "arguments",
    [
        ["--list"],
        ["--summary"],
        ["--best", "loss"],
        ["--best", "loss", "--format", "json"],
        ["--compare", "a", "live"],
    ],
    ids=" ".join,
)
def test_lists_and_rankings_import_nothing_heavy(arguments: list[str]) -> None:
    save_experiment("a", pd.DataFrame({"loss": [1.0]}))
    run = start_experiment("live")
    run.log({"loss": 1.0}, step=1)
    Catalogue()
    modules = imported_by("tools/query_experiments.py", *arguments)
    assert not modules & (HEAVY | {"pyarrow", "numpy"})
    run.finish()


def test_sql_leaves_everything_heavy_to_the_process_of_the_query() -> None:
    modules = imported_by("tools/query_experiments.py", "--sql", "SELECT 1")
    assert not modules & (HEAVY | {"pyarrow", "numpy"})
    modules = imported_by("-c", "import common.experiments.sql_worker")
    assert "duckdb" in modules and not modules & {"torch", "pandas", "pyarrow"}


@pytest.mark.parametrize(
    "argument", ["model.num_layer=3", "optimizer.lr=fast", "--config=configs/nothing.yaml"]
)
def test_a_wrong_configuration_is_told_before_torch_is_loaded(argument: str) -> None:
    config = next((REPOSITORY_ROOT / "projects" / "baseline" / "configs").glob("*.yaml"))
    arguments = ["projects/baseline/train.py", f"--config={config}", argument]
    assert not imported_by(*arguments, code=2) & (HEAVY | {"pyarrow", "numpy"})


def test_showing_a_configuration_needs_no_torch() -> None:
    config = next((REPOSITORY_ROOT / "projects" / "baseline" / "configs").glob("*.yaml"))
    modules = imported_by("projects/baseline/train.py", f"--config={config}", "--print-config")
    assert not modules & (HEAVY | {"pyarrow", "numpy"})


@pytest.mark.parametrize("package", ["data", "models", "training", "utils", "visualization"])
def test_a_package_costs_nothing_until_it_is_used(package: str, tmp_path: Path) -> None:
    assert not imported_by("-c", f"import common.{package}") & (HEAVY | {"pyarrow"})


def test_common_utils_has_the_names_of_its_stub() -> None:
    stub = ast.parse(Path(common.utils.__file__).with_suffix(".pyi").read_text())
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    names = {alias.name for node in imports for alias in node.names}
    assert "save_experiment" in names and all(hasattr(common.utils, name) for name in names)


def test_a_model_without_experts_does_not_import_the_compiler() -> None:
    program = "import sys; from common.models import Decoder; Decoder(9); print('torch._dynamo' in sys.modules)"
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"  # 1 s and 86 MB
