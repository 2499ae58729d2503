"""One command line for all projects: prepare, train, evaluate, sample, export."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from apps.export.command import export
from apps.listing import find_project, project_of_config
from common.cli import (
    evaluate,
    evaluate_parser,
    reported_by_first_process,
    sample,
    sample_parser,
    train,
    train_parser,
)
from common.config import load_config, make_config
from common.data.config import DataConfig
from common.data.sources import check_source
from common.errors import ConfigError, UsageError, exit_on_error
from common.training.config import ExperimentConfig
from common.training.projects import (
    Project,
    find_projects,
    project_of_run,
)
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
# Arguments of these commands are parsed by the parsers of the project scripts, including --help.
_HANDED_ON: dict[str, Any] = {"ignore_unknown_options": True, "help_option_names": []}
HandedOn = Annotated[list[str] | None, typer.Argument()]
Words = Annotated[list[str] | None, typer.Argument(metavar="[PROJECT] [key.path=value ...]")]


def main() -> None:
    """Run the command; report errors in one line with exit code 2."""
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
    """`app.command` with original errors and Ctrl-C, which Typer would rewrite."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        return app.command(name, **settings)(exit_on_error()(function))

    return register


@_command("list", short_help="Projects, configurations, prepared datasets")
def list_all() -> None:
    """List projects with their configurations, and prepared datasets.

    Each configuration is shown with its header: command, time, result.

    Examples:

    \b
      cli list
    """
    from apps.listing import list_datasets, list_projects

    print(list_projects())
    print(list_datasets())


@_command("prepare", short_help="Download the text of a configuration, write token files")
def prepare_data(
    words: Words = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="YAML or TOML, as of train")
    ] = None,
    nanogpt: Annotated[
        bool, typer.Option("--nanogpt", help="write meta.pkl too: nanoGPT trains on the folder")
    ] = False,
) -> None:
    """Download the text of a configuration and write its token files.

    Downloads only if the configuration sets `data.hub`. Training also writes token files for text
    on this machine, but never downloads.

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
    if not isinstance(settings, ExperimentConfig):
        raise UsageError(f"projects/{project.name} does not train on text: nothing to prepare")
    if settings.data.hub is None:
        project.check_inputs(settings, config)
    from apps.listing import describe_tokens
    from common.data.prepare import prepare

    data = prepare(settings.data)
    print(describe_tokens(data.meta))
    print(f"token files {display_path(data.directory)}")
    if nanogpt:
        from apps.nanogpt import write_meta

        print(f"for nanoGPT {display_path(write_meta(data.directory, data.tokenizer))}")
    command = ["cli", "train", project.name, "--config", str(config), *overrides]
    print(f"next        {shlex.join(command)}")


@_command("train", context_settings=_HANDED_ON)
def train_any(arguments: HandedOn = None) -> None:
    """Train a project"""
    parser = train_parser("cli train PROJECT")
    parser.description = f"{parser.description} PROJECT is required if --config is in no project."
    with reported_by_first_process():
        parsed = parser.parse_intermixed_args(arguments or [])
        named, parsed.overrides = _split(parsed.overrides)
        resumed = parsed.name if parsed.resume or parsed.resume_anyway else parsed.extend
        project = _project(named, parsed.config, resumed)
    train(project, *project.load(), parsed)


@_command("evaluate", context_settings=_HANDED_ON)
def evaluate_any(arguments: HandedOn = None) -> None:
    """Evaluate a trained run"""
    _with_run(evaluate, evaluate_parser("cli evaluate"), arguments or [])


@_command("sample", context_settings=_HANDED_ON)
def sample_any(arguments: HandedOn = None) -> None:
    """Generate text with a trained run"""
    _with_run(sample, sample_parser("cli sample"), arguments or [])


@_command("train-tokenizer", short_help="Train a tokenizer, and evaluate it on held-out text")
def learn_vocabulary(
    name: Annotated[str, typer.Option(help="folder in assets/tokenizers")],
    kind: Annotated[
        str, typer.Option(help="bpe, char, sentencepiece or sentencepiece_bpe")
    ] = "bpe",
    vocab_size: Annotated[int, typer.Option(metavar="N", help="ignored by char")] = 4096,
    path: Annotated[Path | None, typer.Option(metavar="PATH", help="a text file or folder")] = None,
    dataset: Annotated[str | None, typer.Option(metavar="NAME", help="instead of --path")] = None,
    holdout: Annotated[
        float, typer.Option(min=0, max=1, help="fraction of the text for evaluation")
    ] = 0.05,
    seed: Annotated[int, typer.Option(help="seed of the held-out selection")] = 0,
) -> None:
    """Train a tokenizer on text, and evaluate it on held-out text.

    Train with it: data.tokenizer=pretrained data.pretrained_tokenizer=NAME.

    Examples:

    \b
      cli train-tokenizer --name stories_512 --dataset stories --vocab-size 512
      cli train-tokenizer --name mine --path texts/ --kind sentencepiece --vocab-size 8000
    """
    if (path is None) == (dataset is None):
        raise UsageError("pass one text, as --path PATH or as --dataset NAME")
    values: dict[str, Any] = {"tokenizer": kind, "vocab_size": vocab_size, "seed": seed}
    values |= {"path": path} if path is not None else {"dataset": dataset}
    config = make_config(DataConfig, values)
    check_source(config, "train-tokenizer", lambda _: "put UTF-8 text there")
    from apps.train_tokenizer import train_tokenizer

    folder, report = train_tokenizer(config, name, holdout=holdout)
    for key, value in asdict(report).items():
        print(f"{key:16}{value:,.4g}" if isinstance(value, float) else f"{key:16}{value}")
    print(f"{'tokenizer':16}{display_path(folder)}")


@_command("export", short_help="Write a trained run in the format of other programs")
def export_any(
    run: Annotated[str, typer.Argument(metavar="NAME", help="the experiment")],
    to: Annotated[str, typer.Option("--format", help="gguf (llama.cpp), onnx, hub (transformers)")],
    output: Annotated[
        Path | None, typer.Option(metavar="PATH", help="default: exports/ in the run's folder")
    ] = None,
    checkpoint: Annotated[str, typer.Option(help="best, last, or a step such as 500")] = "best",
    dtype: Annotated[
        str | None, typer.Option(help="of GGUF: f16 (default), f32, bf16, q8_0")
    ] = None,
) -> None:
    """Write a trained run in the format of other programs.

    Examples:

    \b
      cli export exp_001 --format gguf --dtype q8_0
      cli export exp_001 --format hub --output my_model
    """
    written = export(run, format=to, checkpoint=checkpoint, dtype=dtype, output=output)
    for path in written:
        print(f"written     {display_path(path)}")


def _with_run(
    act: Callable[..., None], parser: argparse.ArgumentParser, arguments: list[str]
) -> None:
    with reported_by_first_process():
        parsed = parser.parse_args(arguments)
    act(parsed)


def _split(words: list[str]) -> tuple[str | None, list[str]]:
    """Return (project, overrides): the first word without `=` is the project's name."""
    named = next((word for word in words if "=" not in word), None)
    overrides = list(words)
    if named is not None:
        overrides.remove(named)
    return named, overrides


def _project(named: str | None, config: str | Path | None, resumed: str | None) -> Project:
    """The named project, or that of the configuration or the resumed run."""
    if named is not None:
        return find_project(named)
    if config is None and resumed is not None:
        return project_of_run(resumed)
    project = project_of_config(Path(config)) if config is not None else None
    if project is None:
        names = ", ".join(project.name for project in find_projects())
        raise ConfigError("no project given", f"pass one before --config: {names}")
    return project


if __name__ == "__main__":
    main()
