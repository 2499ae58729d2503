"""Documents are true: code blocks run, commands have their files and options, names and links exist.

Everything that README.md shows is run, in order; of the other documents the Python, and their commands are checked.
"""

from __future__ import annotations

import functools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.budget import budget
from tests.fork_server import ForkServer

ROOT = Path(__file__).parents[1]
TRACKED = subprocess.run(
    ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
).stdout.split()
DOCUMENTS = [name for name in TRACKED if name.endswith(".md") and (ROOT / name).exists()]
PAGES = [name for name in DOCUMENTS if name.startswith("docs/")]
# This test is part of the first; the second serves until it is stopped, and has a test of its own.
NOT_RUN = ["make test", "python tools/dashboard.py"]
SOURCES = (".py", ".toml", ".yaml", ".js", "Makefile")


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(document: str, language: str) -> list[str]:
    pattern = rf"^```{language}\n(.*?)^```"
    return re.findall(pattern, text_of(document), flags=re.MULTILINE | re.DOTALL)


def commands(document: str) -> list[str]:
    """Whole shell commands: continued lines and open quotes are joined, comments dropped."""
    found, pending = [], ""
    for line in "\n".join(blocks(document, "bash")).splitlines():
        if not pending and (not line or line.startswith("#")):
            continue
        pending += line + "\n"
        try:
            if shlex.split(pending) and not line.endswith("\\"):
                found.append(pending.replace("\\\n", " ").strip())
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
    """In `make attack` each is typed into a shell; in `make test` they train for some steps."""
    in_project_venv = Path(sys.prefix) == ROOT / ".venv"
    environment = os.environ | {
        "RESEARCH_ASSETS_DIR": str(tmp_path / "assets"),
        # The one thing that is shorter than a user's quickstart.
        "OVERRIDES": budget(
            "training.max_steps=12 data.val_fraction=0.004", "training.max_steps=50"
        ),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }

    captured: Any = {"capture_output": True, "text": True}

    def run(command: str) -> subprocess.CompletedProcess[str]:
        first, *words = shlex.split(command)
        starts: dict[str, list[str]] = {"python": [], "cli": ["-m", "tools.cli"]}
        if first in starts and not budget(False, True):
            if words[0].endswith("train.py"):
                words += environment["OVERRIDES"].split()
            return fork_server.run(*starts[first], *words, cwd=ROOT, env=environment)
        return subprocess.run(command, shell=True, cwd=ROOT, env=environment, **captured)

    shown = commands("README.md")
    assert shown[:2] == ["make quickstart", "make test"]
    for command in shown:
        if command in NOT_RUN:
            continue
        steps = [command]
        if command == "make quickstart" and not (in_project_venv and budget(False, True)):
            # In another environment than .venv, make would build one: run what it runs.
            told = subprocess.run(["make", "-n", "quickstart"], cwd=ROOT, **captured).stdout
            steps = re.findall(r"^\.venv/bin/(python (?:projects|tools)/.*)$", told, re.MULTILINE)
            assert len(steps) == 2
        for step in steps:
            result = run(step)
            assert result.returncode == 0, f"{step}\n{result.stdout}\n{result.stderr}"
    run_snippets("README.md", fork_server, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_python_of_a_page_runs(page: str, fork_server: ForkServer, tmp_path: Path) -> None:
    run_snippets(page, fork_server, tmp_path)


def run_snippets(document: str, fork_server: ForkServer, tmp_path: Path) -> None:
    environment = os.environ | {"RESEARCH_ASSETS_DIR": str(tmp_path / "assets")}
    for snippet in blocks(document, "python"):
        snippet = snippet.replace("assets/outputs", str(tmp_path))
        result = fork_server.run("-c", snippet, cwd=ROOT, env=environment)
        assert result.returncode == 0, f"{snippet}\n{result.stderr}"


@pytest.mark.slow
@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_have_their_files_and_options(document: str, run_tool) -> None:
    inline = re.findall(r"`((?:python|cli) [^`]+)`", text_of(document))
    for command in [*commands(document), *(line for line in inline if "..." not in line)]:
        words = shlex.split(command.replace("<", "").replace(">", ""), comments=True)
        scripts = [word for word in words if word.endswith(".py") and word[0].islower()]
        if words[0] == "cli":
            script, arguments = "tools/cli.py", words[1:]
        elif words[0] == "python" and scripts and words[1] == scripts[0]:
            script, arguments = scripts[0], words[2:]
        else:
            continue
        if re.search(r"/(name|NAME|my_\w+|NEW)/", script):
            continue  # stands for any
        assert (ROOT / script).is_file(), command
        options = {word.partition("=")[0] for word in arguments if word.startswith("--")}
        if options:
            sub = [word for word in arguments[:1] if script in SUBCOMMANDS]
            help_text = run_tool(script, *sub, "--help").stdout
            missing = [option for option in options if option not in help_text]
            assert not missing, f"{command}: no {missing} in\n{help_text}"


SUBCOMMANDS = ("tools/cli.py", "tools/analyze.py")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_and_named_files_exist(document: str) -> None:
    folder = (ROOT / document).parent
    text = text_of(document)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if "://" in path:
            continue
        linked = folder / path if path else ROOT / document
        assert linked.exists(), f"{document} links {target}"
        assert not anchor or anchor in anchors(linked), f"{document} links {target}"
    for path in re.findall(r"`([\w./]+\.(?:py|md|js|toml))`", text):
        assert any(f"/{name}".endswith(f"/{path}") for name in TRACKED), f"{document}: {path}"


def anchors(path: Path) -> set[str]:
    """Of the headings of a page, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


@functools.cache
def known_words() -> set[str]:
    sources = [name for name in TRACKED if name.endswith(SOURCES) and not name.startswith("tests/")]
    return set(re.findall(r"\w+", "\n".join(text_of(name) for name in sources)))


@pytest.mark.parametrize("document", ["README.md", "CLAUDE.md", "docs/extending.md"])
def test_names_in_code_style_are_those_of_the_code(document: str) -> None:
    """`load_run`, `Trainer.fit`, `metric_direction`: identifiers with an underscore or a capital letter."""
    for code in re.findall(r"(?<!`)`([A-Za-z_][\w.]*)(?:\([^`]*\))?`", text_of(document)):
        for name in code.split("."):
            is_name = "_" in name.strip("_") or re.fullmatch(r"[A-Z][a-z]+[A-Z]\w+", name)
            assert not is_name or name in known_words() or name in TRACKED, f"{document}: {code}"
