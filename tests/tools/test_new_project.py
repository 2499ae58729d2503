"""`tools/new_project.py` in a copy of the repository: the project it makes trains as it stands."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from common.utils.paths import REPOSITORY_ROOT

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """The parts of the repository that a project needs, elsewhere: nothing is left in the real one."""
    copy = tmp_path / "repository"
    unwanted = shutil.ignore_patterns("__pycache__", "data.*", ".*")
    for part in ("common", "tools", "projects/baseline"):
        shutil.copytree(REPOSITORY_ROOT / part, copy / part, ignore=unwanted, symlinks=True)
    shutil.copy(REPOSITORY_ROOT / "projects" / "__init__.py", copy / "projects")
    (copy / "tests" / "projects").mkdir(parents=True)
    for file in (
        "conftest.py",
        "fork_server.py",
        "projects/conftest.py",
        "projects/test_configs.py",
    ):
        shutil.copy(REPOSITORY_ROOT / "tests" / file, copy / "tests" / file)
    return copy


@pytest.fixture
def run(run_tool, repository: Path) -> Run:
    def run_in_copy(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        env = {"PYTHONPATH": str(repository)}
        result: subprocess.CompletedProcess[str] = run_tool(
            repository / script, *arguments, cwd=repository, env=env
        )
        assert "Traceback" not in result.stderr, result.stderr
        return result

    return run_in_copy


def test_a_project_is_a_copy_of_the_baseline_under_its_own_name(run: Run, repository: Path) -> None:
    projects_before = sorted(p.name for p in (REPOSITORY_ROOT / "projects").iterdir())
    result = run("tools/new_project.py", "my_idea")
    assert result.returncode == 0, result.stderr
    new = repository / "projects" / "my_idea"
    old = repository / "projects" / "baseline"

    def files(folder: Path) -> list[Path]:
        return sorted(p.relative_to(folder) for p in folder.rglob("*") if p.suffix != ".pyc")

    assert [f for f in files(new) if "__pycache__" not in f.parts] == [
        f for f in files(old) if "__pycache__" not in f.parts
    ]
    for path in new.rglob("*.*"):
        if path.is_file() and path.suffix != ".pyc":
            assert not re.search(r"\bbaseline\b", path.read_text(encoding="utf-8")), path
    assert sorted(p.name for p in (REPOSITORY_ROOT / "projects").iterdir()) == projects_before


def test_a_new_project_has_no_figures_of_the_old_one(run: Run, repository: Path) -> None:
    assert run("tools/new_project.py", "my_idea").returncode == 0
    folder = repository / "projects" / "my_idea"
    for path in (folder / "configs").iterdir():
        lines = path.read_text().splitlines()
        header = [line for line in lines if line.startswith("#")]
        assert header[0].startswith("# python projects/my_idea/train.py --config")
        assert len(header) == 2 and "not measured yet" in header[1], path
        old = repository / "projects" / "baseline" / "configs" / path.name
        kept = [line for line in old.read_text().splitlines() if not line.startswith("#")]
        assert lines[2:] == kept
        assert f"| `{path.name}` | | not measured yet |" in (folder / "README.md").read_text()
    for path in folder.rglob("*.md"):
        assert not re.search(r"\d\.\d|\d s\b", path.read_text()), path


def test_every_command_that_it_prints_names_files_that_exist(run: Run, repository: Path) -> None:
    printed = run("tools/new_project.py", "my_idea").stdout
    script, config = re.search(r"python (\S+) --config (\S+)", printed).groups()  # type: ignore[union-attr]
    assert (repository / script).is_file()
    result = run(script, "--config", config, "--print-config")
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_the_tests_of_the_new_project_pass(run: Run, repository: Path) -> None:
    """A test of its own, and those that hold for the configurations of every project."""
    assert run("tools/new_project.py", "my_idea").returncode == 0
    tests = repository / "tests" / "projects"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", "my_idea"]
    environment = os.environ | {"PYTHONPATH": str(repository)}
    result = subprocess.run(
        [*command, str(tests)], cwd=repository, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout
    configs = len(list((repository / "projects/my_idea/configs").iterdir()))
    assert f"{3 * configs + 1} passed" in result.stdout


@pytest.mark.slow
def test_the_new_project_trains_and_is_stored_under_its_own_name(
    run: Run, repository: Path, tmp_path: Path
) -> None:
    assert run("tools/new_project.py", "my_idea").returncode == 0
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat.\n" * 60)
    config = next((repository / "projects" / "my_idea" / "configs").glob("*.yaml"))
    result = run(
        "projects/my_idea/train.py",
        "--config",
        f"configs/{config.name}",
        "--name",
        "first",
        f"data.path={text}",
        "data.tokenizer=char",
        "model.num_layers=1",
        "model.hidden_size=16",
        "model.num_heads=2",
        "model.context_length=16",
        "data.batch_size=2",
        "training.max_steps=3",
        "training.eval_every_steps=3",
        "training.device=cpu",
        "samples.max_new_tokens=5",
    )
    assert result.returncode == 0, result.stderr
    assert "projects/my_idea/sample.py" in result.stdout
    listed = run("tools/query_experiments.py", "--list", "--format", "csv").stdout
    assert "first,finished,my_idea" in listed


@pytest.mark.parametrize(
    "name", ["", "My_Idea", "1st", "my-idea", "a b", "class", "../x", "é", "_x", "a.b", "x/y"]
)
def test_a_name_that_python_cannot_import_is_refused(run: Run, repository: Path, name: str) -> None:
    result = run("tools/new_project.py", name)
    assert result.returncode == 2 and "not a valid project name" in result.stderr
    assert sorted(p.name for p in (repository / "projects").iterdir() if p.is_dir()) == ["baseline"]


def test_an_existing_project_is_never_overwritten(run: Run, repository: Path) -> None:
    before = (repository / "projects" / "baseline" / "train.py").read_bytes()
    result = run("tools/new_project.py", "baseline")
    assert result.returncode == 2 and "already exists" in result.stderr
    assert (repository / "projects" / "baseline" / "train.py").read_bytes() == before
