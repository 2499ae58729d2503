"""One command line over all projects: prepare, train, evaluate, sample, export, list."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from common.cli import (
    check_data,
    evaluate,
    evaluate_parser,
    run_name,
    sample,
    sample_parser,
    train,
    train_parser,
)
from common.config import load_config
from common.errors import ConfigError, UsageError, exit_on_error
from common.projects import Project, find_project, find_projects, project_of_config, project_of_run
from common.utils.paths import display_path

if TYPE_CHECKING:
    import argparse

EXAMPLES = """Examples:

\b
  cli list
  cli train baseline --config configs/quickstart.yaml --name exp_001
  cli evaluate exp_001
  cli sample exp_001 --prompt "Once upon a time"
"""
app = typer.Typer(
    name="cli",
    help=f"{__doc__}\n\n{EXAMPLES}",
    add_completion=False,
    rich_markup_mode=None,  # plain help costs no import of rich
    pretty_exceptions_enable=False,
)
# What follows these commands is parsed by the parser of the projects' own scripts, --help included.
_HANDED_ON: dict[str, Any] = {"ignore_unknown_options": True, "help_option_names": []}
HandedOn = Annotated[list[str] | None, typer.Argument()]
Words = Annotated[list[str] | None, typer.Argument(metavar="[PROJECT] [key.path=value ...]")]


def main() -> None:
    """Run the command that was typed; every mistake is one line and exit code 2."""
    usage_error: Any = typer.BadParameter.__bases__[
        0
    ]  # click's UsageError, wherever Typer keeps it
    with exit_on_error():
        try:
            sys.exit(app(sys.argv[1:] or ["--help"], prog_name="cli", standalone_mode=False))
        except usage_error as error:
            command = error.ctx.command_path if error.ctx else "cli"
            raise UsageError(error.format_message(), f"{command} --help") from error


def _command(name: str, **settings: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """As `app.command`, but errors and Ctrl-C stay what they are: Typer would rewrite the latter."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        return app.command(name, **settings)(exit_on_error()(function))

    return register


@_command("list", short_help="Projects, configurations, prepared datasets")
def list_all() -> None:
    """Projects with their configurations, and the datasets that are prepared.

    Every configuration is shown with what it begins with: its command, its time, its number.

    Examples:

    \b
      cli list
    """
    from common.listing import list_datasets, list_projects

    print(list_projects())
    print(list_datasets())


@_command("prepare", short_help="Get the text of a configuration, make token files")
def prepare_data(
    words: Words = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="YAML or TOML, as of train")
    ] = None,
) -> None:
    """Get the text that a configuration asks for and make its token files.

    Downloads the text where the configuration names one (`data.hub`). Training makes token files too, of
    text that is on this machine; it never downloads.

    Examples:

    \b
      cli prepare shakespeare --config configs/shakespeare.yaml
      cli prepare --config projects/baseline/configs/quickstart.yaml data.vocab_size=1024
    """
    named, overrides = _split(words or [])
    if config is None:
        raise UsageError("--config is missing", "cli list shows the configurations")
    project = _project(named, config, None)
    schema, _ = project.load()
    settings = load_config(config, schema, overrides, [project.directory])
    if settings.data.hub is None:
        check_data(settings, project, config)
    from common.data.prepare import prepare
    from common.listing import describe_tokens

    data = prepare(settings.data)
    print(describe_tokens(data.meta))
    print(f"token files {display_path(data.directory)}")
    command = ["cli", "train", project.name, "--config", str(config), *overrides]
    print(f"next        {shlex.join(command)}")


@_command("train", context_settings=_HANDED_ON)
def train_any(arguments: HandedOn = None) -> None:
    """Train a project"""
    parser = train_parser("cli train PROJECT")
    parser.description = f"{parser.description} PROJECT is needed where --config is in none."
    parsed = parser.parse_intermixed_args(arguments or [])
    named, parsed.overrides = _split(parsed.overrides)
    resumed = parsed.name if parsed.resume or parsed.resume_anyway else None
    project = _project(named, parsed.config, resumed)
    train(project, *project.load(), parsed)


@_command("evaluate", context_settings=_HANDED_ON)
def evaluate_any(arguments: HandedOn = None) -> None:
    """Judge a trained run"""
    _with_run(evaluate, evaluate_parser("cli evaluate"), arguments or [])


@_command("sample", context_settings=_HANDED_ON)
def sample_any(arguments: HandedOn = None) -> None:
    """Let a trained run write"""
    _with_run(sample, sample_parser("cli sample"), arguments or [])


def _with_run(
    act: Callable[..., None], parser: argparse.ArgumentParser, arguments: list[str]
) -> None:
    parsed = parser.parse_args(arguments)
    project = project_of_run(run_name(parsed))
    act(project, *project.load(), parsed)


def _split(words: list[str]) -> tuple[str | None, list[str]]:
    """(project, overrides): the first word without `=` is the project's name."""
    named = next((word for word in words if "=" not in word), None)
    overrides = list(words)
    if named is not None:
        overrides.remove(named)
    return named, overrides


def _project(named: str | None, config: str | Path | None, resumed: str | None) -> Project:
    """The project that is named, or that the configuration or the resumed run belongs to."""
    if named is not None:
        return find_project(named)
    if config is None and resumed is not None:
        return project_of_run(resumed)
    project = project_of_config(Path(config)) if config is not None else None
    if project is None:
        names = ", ".join(project.name for project in find_projects())
        raise ConfigError("which project?", f"name one before --config: {names}")
    return project


if __name__ == "__main__":
    main()
