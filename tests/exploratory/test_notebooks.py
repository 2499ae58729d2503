"""Every notebook is clean and runs from top to bottom, offline, in an assets folder of its own."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from common.utils import query_experiments
from common.utils.paths import REPOSITORY_ROOT
from tests.budget import budget

FOLDER = REPOSITORY_ROOT / "exploratory"
NOTEBOOKS = sorted(p for p in FOLDER.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
MOST_BYTES = 100_000  # of all of them
TIMEOUT_SECONDS = 300  # of a cell; a whole notebook takes under a minute


# In `make test`: trainings that learn less, and show it in the same way.
SHORTER = {
    r'("max_steps"): \d+': r"\1: 40",
    r'("eval_every_steps"): \d+': r"\1: 20",
    r'("num_stories"): \d+': r"\1: 600",
    r"(SEEDS) = range\(5\)": r"\1 = range(3)",
}


def name_of(path: Path) -> str:
    return path.parent.name


def test_there_are_notebooks_in_dated_folders_that_the_readme_names() -> None:
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert len(NOTEBOOKS) >= 3
    for path in NOTEBOOKS:
        assert path.parent.parent == FOLDER, path
        assert re.fullmatch(r"20\d\d-\d\d-\d\d_[a-z0-9_]+", path.parent.name), path
        assert str(path.relative_to(FOLDER)) in readme
    assert sum(path.stat().st_size for path in NOTEBOOKS) < MOST_BYTES


def run_clear(*arguments: str, folder: Path = FOLDER) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(folder / "clear_outputs.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_the_notebooks_hold_no_outputs() -> None:
    result = run_clear("--check")
    assert result.returncode == 0, f"run python exploratory/clear_outputs.py:\n{result.stdout}"


def test_outputs_are_found_and_cleared(tmp_path: Path) -> None:
    (tmp_path / "clear_outputs.py").write_text((FOLDER / "clear_outputs.py").read_text())
    path = tmp_path / "2026-01-01_x" / "notebook.ipynb"
    path.parent.mkdir()
    clean = NOTEBOOKS[0].read_text(encoding="utf-8")
    content = json.loads(clean)
    cell = next(cell for cell in content["cells"] if cell["cell_type"] == "code")
    cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "secret"}]
    cell["execution_count"] = 3
    content["metadata"]["kernelspec"]["display_name"] = "mine"
    path.write_text(json.dumps(content))
    result = run_clear("--check", folder=tmp_path)
    assert result.returncode == 1 and "notebook.ipynb" in result.stdout
    assert "secret" in path.read_text()  # --check changes nothing
    assert run_clear(folder=tmp_path).returncode == 0
    assert path.read_text(encoding="utf-8") == clean
    assert run_clear("--check", folder=tmp_path).returncode == 0
    path.write_text(json.dumps(content))
    assert run_clear("--chek", folder=tmp_path).returncode == 2
    assert "secret" in path.read_text()


@pytest.mark.attack
@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("nbclient") is None or importlib.util.find_spec("ipykernel") is None,
    reason='needs uv pip install -e ".[notebooks]"',
)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_a_notebook_runs(
    path: Path, tmp_path: Path, assets_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nbclient
    import nbformat

    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")  # the kernel of this environment
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody answers there
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        for number, less in budget(SHORTER, {}).items():
            cell.source = re.sub(number, less, cell.source)
    (tmp_path / "here").mkdir()
    client = nbclient.NotebookClient(
        notebook,
        timeout=TIMEOUT_SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path / "here")}},
    )
    client.execute()  # raises where a cell does

    outputs: list[Any] = [
        output
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "data" in output
    ]
    assert any("image/png" in output.data for output in outputs), "no plot was shown"
    assert not any(
        output.data["text/plain"].startswith("<Figure") and "image/png" not in output.data
        for output in outputs
    )
    assert list((tmp_path / "here").iterdir()) == []
    runs = query_experiments("SELECT name, status FROM runs")
    assert len(runs) > 0 and set(runs["status"]) == {"finished"}
    assert assets_dir.is_dir()
