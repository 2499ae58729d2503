"""The command lines of every project: train.py, evaluate.py and sample.py say what is special, this does the rest.

`tools/cli.py` has the same commands over all projects; both parse with the parsers and run the functions
that stand here. Arguments, configuration and the presence of the data are checked before torch is
imported: `--help`, a wrong key and a missing text are reported at once.
"""

from __future__ import annotations

import argparse
import os
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
from common.errors import (
    ConfigError,
    DataError,
    ResearchError,
    UsageError,
    exit_on_error,
)
from common.experiments.run_folders import folder_of
from common.training.config import BaseExperimentConfig, SampleConfig
from common.training.projects import Project, recorded_config
from common.training.trained_run import load_run
from common.utils.arguments import seed, utf8_text
from common.utils.logging import process_rank

if TYPE_CHECKING:
    from common.training.experiment import Experiment

C = TypeVar("C", bound=BaseExperimentConfig)
Build = Callable[[C], "Experiment"]


def train_main(schema: type[C], build: Build[C], script: str) -> None:
    """The whole of a project's train.py: parse, check, train, report."""
    project = Project(Path(script).resolve().parent)
    parser = train_parser(f"python projects/{project.name}/train.py")
    with exit_on_error():
        with reported_by_first_process():
            arguments = parser.parse_intermixed_args()
        train(project, schema, build, arguments)


def evaluate_main(script: str) -> None:
    """The whole of a project's evaluate.py: evaluate a trained run on its validation data."""
    _main(script, evaluate_parser, evaluate)


def sample_main(script: str) -> None:
    """The whole of a project's sample.py: print text that a trained run generates."""
    _main(script, sample_parser, sample)


def _main(
    script: str,
    parser_of: Callable[[str], argparse.ArgumentParser],
    act: Callable[[argparse.Namespace], None],
) -> None:
    path = Path(script).resolve()
    parser = parser_of(f"python projects/{path.parent.name}/{path.name}")
    with exit_on_error():
        with reported_by_first_process():
            arguments = parser.parse_args()
        act(arguments)


def train_parser(command: str) -> argparse.ArgumentParser:
    """The arguments of a train.py."""
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
    build: Build[C],
    arguments: argparse.Namespace,
) -> None:
    """Train what the arguments of `train_parser` ask for. Raises ResearchErrors."""
    with reported_by_first_process():
        if arguments.print_configs:
            path = _config_path(arguments, project)
            _print_configs(project, schema, path, arguments.overrides)
            return
        config, path = _config(arguments, project, schema)
        if arguments.print_config:
            print(dump_config(config), end="")
            return
        project.check_inputs(config, path, arguments.overrides)
    from common.training.job import train_experiment

    stem = Path(arguments.config).stem if arguments.config else arguments.extend or project.name
    train_experiment(
        config,
        build,
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
        needed = config.model_dump_json(exclude={"optimizer", "schedule", "training", "seed"})
        if needed not in checked:  # most trials need the same text and the same weights
            project.check_inputs(config, path, [*overrides, *more])
            checked.add(needed)
        return config

    print_configs(load, sys.stdin)


@contextmanager
def reported_by_first_process() -> Iterator[None]:
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
            time.sleep(15)  # torchrun ends this process as soon as the first one has reported
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
        return change_config(config, arguments.overrides), folder_of(recorded) / "config.yaml"
    path = _config_path(arguments, project)
    return load_config(path, schema, arguments.overrides, [project.directory]), path


def _config_path(arguments: argparse.Namespace, project: Project) -> Path:
    if arguments.config:
        return Path(arguments.config)
    choices = ", ".join(f"configs/{path.name}" for path in project.configs)
    raise ConfigError("--config is missing", f"this project has {choices}")


def evaluate_parser(command: str) -> argparse.ArgumentParser:
    """The arguments of an evaluate.py."""
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
        help="evaluate on these text files or folders too, each by itself",
    )
    parser.add_argument(
        "--full-report",
        action="store_true",
        help="also accuracy, calibration, loss by position and repetition of samples, "
        "written to report.json and report.png in the run's folder",
    )
    return parser


def evaluate(arguments: argparse.Namespace) -> None:
    """Evaluate what the arguments of `evaluate_parser` ask for. Raises ResearchErrors."""
    if process_rank():
        return  # the first process does it
    run = load_run(run_name(arguments), arguments.checkpoint)
    from common.training.evaluation_report import evaluate_run, evaluate_texts

    if arguments.data or arguments.full_report:
        evaluate_texts(run, arguments.split, arguments.data, full_report=arguments.full_report)
    else:
        evaluate_run(run, arguments.split)


def sample_parser(command: str) -> argparse.ArgumentParser:
    """The arguments of a sample.py."""
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


def sample(arguments: argparse.Namespace) -> None:
    """Generate what the arguments of `sample_parser` ask for. Raises ResearchErrors."""
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
    name, prompt = run_name(arguments), _read_prompt(arguments)
    run = load_run(name, arguments.checkpoint)
    from common.training.generation import converse, sample_run

    if arguments.interactive:
        converse(run, prompt=prompt, **options)
    else:
        sample_run(run, prompt=prompt, num_samples=arguments.num_samples, **options)


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


class _Parser(argparse.ArgumentParser):
    """Reports a mistake in one line, as every command here does."""

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
