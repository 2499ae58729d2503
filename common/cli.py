"""The command lines of every project: train.py, evaluate.py and sample.py say what is special, this does the rest.

`tools/cli.py` has the same commands over all projects; both parse with the parsers and run the functions
that stand here. Arguments, configuration and the presence of the data are checked before torch is
imported: `--help`, a wrong key and a missing text are told at once.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from common.config import (
    ConfigFile,
    change_config,
    dump_config,
    load_config,
    make_config,
    print_configs,
)
from common.data.sources import check_source
from common.errors import (
    ConfigError,
    DataError,
    ResearchError,
    UsageError,
    exit_on_error,
)
from common.projects import Project, recorded_config
from common.training.config import ExperimentConfig, SampleConfig
from common.utils.arguments import seed, utf8_text
from common.utils.logging import process_rank
from common.utils.paths import display_path, get_datasets_dir, get_runs_dir

if TYPE_CHECKING:
    from common.models.base import BaseLanguageModel

C = TypeVar("C", bound=ExperimentConfig)
BuildModel = Callable[[C, int], "BaseLanguageModel"]  # (config, vocab_size) -> model


def train_main(schema: type[C], build_model: BuildModel[C], script: str) -> None:
    """The whole of a project's train.py: parse, check, train, report."""
    project = Project(Path(script).resolve().parent)
    parser = train_parser(f"python projects/{project.name}/train.py")
    with exit_on_error():
        with told_by_first_process():
            arguments = parser.parse_intermixed_args()
        train(project, schema, build_model, arguments)


def evaluate_main(schema: type[C], build_model: BuildModel[C], script: str) -> None:
    """The whole of a project's evaluate.py: judge a trained run on its validation text."""
    project = Project(Path(script).resolve().parent)
    parser = evaluate_parser(f"python projects/{project.name}/evaluate.py")
    with exit_on_error():
        with told_by_first_process():
            arguments = parser.parse_args()
        evaluate(project, schema, build_model, arguments)


def sample_main(schema: type[C], build_model: BuildModel[C], script: str) -> None:
    """The whole of a project's sample.py: print text as a trained run writes it."""
    project = Project(Path(script).resolve().parent)
    parser = sample_parser(f"python projects/{project.name}/sample.py")
    with exit_on_error():
        with told_by_first_process():
            arguments = parser.parse_args()
        sample(project, schema, build_model, arguments)


def train_parser(command: str) -> argparse.ArgumentParser:
    parser = _parser(
        command,
        "Train: prepares the text, trains, evaluates, samples, stores the experiment.",
        f"""examples:
  {command} --config configs/quickstart.yaml
  {command} --config configs/quickstart.yaml --name exp_001 \\
      training.max_steps=200 optimizer.lr=3e-4
  {command} --name exp_001 --resume
  {command} --extend exp_001 training.max_steps=2000""",
    )
    parser.add_argument(
        "--config", metavar="FILE", help="YAML or TOML; looked up here, then in the project"
    )
    parser.add_argument("--name", help="of the experiment (default: the next free <config>_NNN)")
    parser.add_argument(
        "--resume", action="store_true", help="continue after a crash or Ctrl-C, exactly"
    )
    parser.add_argument("--tag", action="append", default=[], help="of the experiment; repeatable")
    parser.add_argument(
        "--resume-anyway",
        action="store_true",
        help="resume although configuration or data have changed, and say what has",
    )
    parser.add_argument(
        "--extend",
        metavar="NAME",
        help="begin a new experiment at the last checkpoint of NAME, with its configuration and the "
        "changes given: more steps, another learning rate; says that it did",
    )
    parser.add_argument(
        "--print-config", action="store_true", help="show the resolved configuration and stop"
    )
    parser.add_argument(
        "--print-configs",
        action="store_true",
        help="the same as JSON, and checked, for every line of stdin: a JSON list of more changes",
    )
    parser.add_argument(
        "--share-auto",
        type=Path,
        metavar="FILE",
        help="compute as the first of several runs that share FILE, where precision and compile are auto",
    )
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="changes to it")
    return parser


def train(
    project: Project,
    schema: type[C],
    build_model: BuildModel[C],
    arguments: argparse.Namespace,
) -> None:
    """Train what the arguments of `train_parser` ask for. Raises ResearchErrors."""
    with told_by_first_process():
        if arguments.print_configs:
            path = _config_path(arguments, project)
            _print_configs(project, schema, path, arguments.overrides)
            return
        config, path = _config(arguments, project, schema)
        if arguments.print_config:
            print(dump_config(config), end="")
            return
        check_data(config, project, path, arguments.overrides)
    from common.training.experiment import train_experiment

    stem = Path(arguments.config).stem if arguments.config else arguments.extend or project.name
    train_experiment(
        config,
        build_model,
        project=project.name,
        name=arguments.name,
        prefix=stem,
        tags=arguments.tag,
        resume=arguments.resume or arguments.resume_anyway,
        resume_anyway=arguments.resume_anyway,
        extend=arguments.extend,
        share_auto=arguments.share_auto,
    )


def _print_configs(project: Project, schema: type[C], path: Path, overrides: list[str]) -> None:
    file = ConfigFile(path, [project.directory])
    checked = set()

    def load(more: list[str]) -> C:
        config = file.load(schema, [*overrides, *more])
        needed = json.dumps(
            [config.data.model_dump(mode="json"), config.model.model_dump(mode="json")]
        )
        if needed not in checked:  # most trials need the same text and the same weights
            check_data(config, project, path, [*overrides, *more])
            checked.add(needed)
        return config

    print_configs(load, sys.stdin)


@contextmanager
def told_by_first_process() -> Iterator[None]:
    """Of the processes of torchrun, which all read the same command line, only the first answers it."""
    if process_rank() == 0:
        yield
        return
    try:
        with (
            Path(os.devnull).open("w") as nowhere,
            redirect_stdout(nowhere),
            redirect_stderr(nowhere),
        ):
            yield
    except (ResearchError, SystemExit) as error:
        if not isinstance(error, SystemExit) or error.code:
            time.sleep(15)  # torchrun ends this process as soon as the first one has told
        raise  # the first one found nothing wrong: another machine, or other files


def _config(arguments: argparse.Namespace, project: Project, schema: type[C]) -> tuple[C, Path]:
    """(configuration, its file): that of the run to extend, or to resume where no file is named."""
    resume = arguments.resume or arguments.resume_anyway
    if arguments.extend and (resume or arguments.config):
        raise UsageError(
            "--extend goes without --config and --resume",
            f"it takes the configuration of '{arguments.extend}' with the changes given",
        )
    recorded = arguments.extend or (arguments.name if resume and not arguments.config else None)
    if recorded:
        config = recorded_config(recorded, schema)
        return change_config(config, arguments.overrides), config_file(recorded)
    path = _config_path(arguments, project)
    return load_config(path, schema, arguments.overrides, [project.directory]), path


def _config_path(arguments: argparse.Namespace, project: Project) -> Path:
    if arguments.config:
        return Path(arguments.config)
    choices = ", ".join(f"configs/{path.name}" for path in project.configs)
    raise ConfigError("--config is missing", f"this project has {choices}")


def check_data(
    config: ExperimentConfig, project: Project, path: Path, overrides: list[str] | None = None
) -> None:
    """Raises DataError, with the way to get it, where the text is not on this machine.

    A text that is here is tokenized when it is first used. One that is not is never waited for: only
    `cli prepare` asks the network.
    """
    needed_by = f"projects/{project.name}"

    def way(dataset: str) -> str:
        if config.data.hub is not None:
            command = ["cli", "prepare", project.name, "--config", str(path), *(overrides or [])]
            return f"download it with: {shlex.join(command)}"
        file = display_path(get_datasets_dir() / dataset / f"{dataset}.txt")
        return f"put UTF-8 text there, for example {file}; {needed_by}/README.md says more"

    check_source(config.data, needed_by, way)
    config.check_inputs()


def evaluate_parser(command: str) -> argparse.ArgumentParser:
    parser = _parser(
        command,
        "Evaluate a trained run on its whole validation split, and on other texts.",
        f"""examples:
  {command} exp_001
  {command} --name exp_001 --checkpoint last --split train
  {command} exp_001 --full-report
  {command} exp_001 --data other.txt more/

Texts in other tokens or words are compared by their bits per byte.""",
    )
    _add_run_arguments(parser)
    parser.add_argument("--split", choices=["train", "val"], default="val")
    parser.add_argument(
        "--data",
        nargs="+",
        action="extend",
        default=[],
        type=Path,
        metavar="PATH",
        help="judge on these text files or folders too, each by itself",
    )
    parser.add_argument(
        "--full-report",
        action="store_true",
        help="also accuracy, calibration, loss by position and repetition of samples, "
        "written to report.json and report.png in the run's folder",
    )
    return parser


def evaluate(
    project: Project,
    schema: type[C],
    build_model: BuildModel[C],
    arguments: argparse.Namespace,
) -> None:
    """Judge what the arguments of `evaluate_parser` ask for. Raises ResearchErrors."""
    if process_rank():
        return  # the first process does it
    config, name = _trained(project, schema, arguments)
    run = (config, build_model, name, arguments.checkpoint, arguments.split)
    if arguments.data or arguments.full_report:
        from common.training.evaluation_report import judge_run

        judge_run(*run, texts=arguments.data, full_report=arguments.full_report)
    else:
        from common.training.experiment import evaluate_run

        evaluate_run(*run)


def sample_parser(command: str) -> argparse.ArgumentParser:
    parser = _parser(
        command,
        "Let a trained run write, token by token.",
        f"""examples:
  {command} exp_001 --prompt "def " --max-new-tokens 200
  {command} --name exp_001 --temperature 0 --num-samples 3
  {command} exp_001 --prompt-file opening.txt --stop "THE END"
  echo "Once upon a time" | {command} exp_001
  {command} exp_001 --interactive --stop $'\\n'

A file and standard input are UTF-8; one line end at their end is left out.""",
    )
    _add_run_arguments(parser)
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument(
        "--prompt",
        type=utf8_text,
        metavar="TEXT",
        help="text to continue; - reads standard input, as does a pipe (default: a new document)",
    )
    prompt.add_argument("--prompt-file", type=Path, metavar="FILE", help="continue its text")
    parser.add_argument(
        "--interactive",
        action="store_true",
        help="continue every line that you type, after all that was written before it; "
        "/reset forgets that, Ctrl-D ends",
    )
    parser.add_argument(
        "--stop",
        type=utf8_text,
        action="append",
        default=[],
        metavar="TEXT",
        help="end a sample before this text; repeatable",
    )
    parser.add_argument("--max-new-tokens", type=int, default=200, metavar="N")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 is greedy (default 0.8)")
    parser.add_argument("--top-k", type=int, metavar="K")
    parser.add_argument("--top-p", type=float, metavar="P")
    parser.add_argument("--num-samples", type=int, default=1, metavar="N")
    parser.add_argument("--seed", type=seed, default=0, help="of the draws (default 0)")
    return parser


def sample(
    project: Project,
    schema: type[C],
    build_model: BuildModel[C],
    arguments: argparse.Namespace,
) -> None:
    """Write what the arguments of `sample_parser` ask for. Raises ResearchErrors."""
    if process_rank():
        return  # the first process does it
    if "" in arguments.stop:
        raise UsageError("--stop takes a text, not an empty one")
    if arguments.num_samples < 1:
        raise UsageError(f"--num-samples must be at least 1, got {arguments.num_samples}")
    if arguments.interactive and (arguments.prompt == "-" or arguments.num_samples > 1):
        raise UsageError("--interactive goes without --num-samples and --prompt -")
    options: dict[str, Any] = {
        key: getattr(arguments, key) for key in ("max_new_tokens", "temperature", "top_k", "top_p")
    }
    make_config(SampleConfig, options)
    options |= {"seed": arguments.seed, "stop": arguments.stop}
    config, name = _trained(project, schema, arguments)
    prompt = _read_prompt(arguments)
    from common.training.generation import converse, sample_run

    run = (config, build_model, name, arguments.checkpoint)
    if arguments.interactive:
        converse(*run, prompt=prompt, **options)
    else:
        sample_run(*run, prompt=prompt, num_samples=arguments.num_samples, **options)


def _read_prompt(arguments: argparse.Namespace) -> str:
    if arguments.prompt_file is not None:
        return _decode(arguments.prompt_file.read_bytes(), str(arguments.prompt_file))
    if arguments.prompt == "-" or (
        arguments.prompt is None and not arguments.interactive and _is_piped()
    ):
        return _decode(sys.stdin.buffer.read(), "standard input")
    return arguments.prompt or ""


def _is_piped() -> bool:
    """Whether someone gave us a text by `... | sample` or `sample < FILE`; not in a job without input."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError, AttributeError):  # closed, or not there at all
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _decode(content: bytes, source: str) -> str:
    try:
        text = content.decode("utf-8-sig")  # editors on Windows mark their UTF-8
    except UnicodeDecodeError as error:
        raise DataError(f"{source} is not UTF-8 text (byte {error.start})") from error
    return text.removesuffix("\n").removesuffix("\r")


def _add_run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", nargs="?", metavar="NAME", help="the experiment")
    parser.add_argument("--name", help="the same, as an option")
    parser.add_argument(
        "--checkpoint",
        default="best",
        help="best (lowest validation loss, the default), last, or a step such as 500",
    )


def run_name(arguments: argparse.Namespace) -> str:
    """The experiment that is named in either way. Raises UsageError for none and for two."""
    names = {name for name in (arguments.run, arguments.name) if name is not None}
    if len(names) != 1:
        raise UsageError("name one experiment, as NAME or as --name NAME")
    return str(names.pop())


def _trained(project: Project, schema: type[C], arguments: argparse.Namespace) -> tuple[C, str]:
    """(configuration, name) of the run that is named; its text, which gave the tokens, is there."""
    name = run_name(arguments)
    config = recorded_config(name, schema)
    check_data(config, project, config_file(name))
    return config, name


def config_file(name: str) -> Path:
    """Where the configuration of a run stands to be read."""
    return get_runs_dir() / name / "config.yaml"


class _Parser(argparse.ArgumentParser):
    """Tells a mistake in one line, as every command here does."""

    def error(self, message: str) -> NoReturn:
        with exit_on_error():
            raise UsageError(message, f"{self.prog} --help")


def _parser(command: str, description: str, examples: str) -> argparse.ArgumentParser:
    return _Parser(
        prog=command,
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
