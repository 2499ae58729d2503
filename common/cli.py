"""The command lines of every project: train.py, evaluate.py and sample.py say what is special, this does the rest.

Arguments and configuration are checked before torch is imported: `--help` and a wrong key answer at
once.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from common.config import dump_config, load_config
from common.errors import ConfigError, ExperimentError, ResearchError, did_you_mean, exit_on_error
from common.training.config import ExperimentConfig
from common.utils.paths import get_runs_dir

if TYPE_CHECKING:
    from common.models.base import BaseLanguageModel

C = TypeVar("C", bound=ExperimentConfig)
BuildModel = Callable[[C, int], "BaseLanguageModel"]  # (config, vocab_size) -> model


def train_main(schema: type[C], build_model: BuildModel[C], script: str) -> None:
    """The whole of a project's train.py: parse, check, train, report."""
    project = Path(script).resolve().parent
    parser = _parser(
        f"Train {project.name}: prepares the text, trains, evaluates, samples, stores the experiment.",
        f"""examples:
  python projects/{project.name}/train.py --config configs/quickstart.yaml
  python projects/{project.name}/train.py --config configs/quickstart.yaml --name exp_001 \\
      training.max_steps=200 optimizer.lr=3e-4
  python projects/{project.name}/train.py --name exp_001 --resume""",
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
        "--print-config", action="store_true", help="show the resolved configuration and stop"
    )
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="changes to it")
    arguments = parser.parse_intermixed_args()
    with exit_on_error():
        with _told_by_first_process():
            config = load_config(
                _config_path(arguments, project), schema, arguments.overrides, [project]
            )
        if arguments.print_config:
            print(dump_config(config), end="")
            return
        from common.training.experiment import train_experiment

        stem = Path(arguments.config).stem if arguments.config else project.name
        train_experiment(
            config,
            build_model,
            project=project.name,
            name=arguments.name,
            prefix=stem,
            tags=arguments.tag,
            resume=arguments.resume or arguments.resume_anyway,
            resume_anyway=arguments.resume_anyway,
        )


@contextmanager
def _told_by_first_process() -> Iterator[None]:
    """Of the processes of torchrun, which all find the same mistake, only the first tells it."""
    try:
        yield
    except ResearchError:
        if int(os.environ.get("RANK", "0")) == 0:
            raise
        time.sleep(5)  # torchrun ends this process as soon as the first one has told
        sys.exit(2)


def _config_path(arguments: argparse.Namespace, project: Path) -> Path:
    if arguments.config:
        return Path(arguments.config)
    if (arguments.resume or arguments.resume_anyway) and arguments.name:
        return _run_config(arguments.name)
    found = sorted((project / "configs").glob("*"))
    choices = ", ".join(f"configs/{path.name}" for path in found)
    raise ConfigError("--config is missing", f"this project has {choices}")


def _run_config(name: str) -> Path:
    path = get_runs_dir() / name / "config.yaml"
    if not path.is_file():
        runs = get_runs_dir()
        names = sorted(p.name for p in runs.iterdir() if p.is_dir()) if runs.is_dir() else []
        hint = did_you_mean(name, names) if names else "train one first"
        raise ExperimentError(f"there is no run '{name}' in {runs}", hint)
    return path


def evaluate_main(schema: type[C], build_model: BuildModel[C], script: str) -> None:
    """The whole of a project's evaluate.py: judge a trained run on its validation text."""
    project = Path(script).resolve().parent.name
    parser = _parser(
        "Evaluate a trained run on its whole validation split, and on other texts.",
        f"""examples:
  python projects/{project}/evaluate.py --name exp_001
  python projects/{project}/evaluate.py --name exp_001 --checkpoint last --split train
  python projects/{project}/evaluate.py --name exp_001 --full-report
  python projects/{project}/evaluate.py --name exp_001 --data other.txt more/

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
    arguments = parser.parse_args()
    with exit_on_error():
        config = load_config(_run_config(arguments.name), schema)
        run = (config, build_model, arguments.name, arguments.checkpoint, arguments.split)
        if arguments.data or arguments.full_report:
            from common.training.evaluation_report import judge_run

            judge_run(*run, texts=arguments.data, full_report=arguments.full_report)
        else:
            from common.training.experiment import evaluate_run

            evaluate_run(*run)


def sample_main(schema: type[C], build_model: BuildModel[C], script: str) -> None:
    """The whole of a project's sample.py: print text as a trained run writes it."""
    project = Path(script).resolve().parent.name
    parser = _parser(
        "Let a trained run write, token by token.",
        f"""examples:
  python projects/{project}/sample.py --name exp_001 --prompt "def " --max-new-tokens 200
  python projects/{project}/sample.py --name exp_001 --temperature 0 --num-samples 3""",
    )
    _add_run_arguments(parser)
    parser.add_argument("--prompt", default="", help="text to continue (default: a new document)")
    parser.add_argument("--max-new-tokens", type=int, default=200, metavar="N")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 is greedy (default 0.8)")
    parser.add_argument("--top-k", type=int, metavar="K")
    parser.add_argument("--top-p", type=float, metavar="P")
    parser.add_argument("--num-samples", type=int, default=1, metavar="N")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default 0)")
    arguments = parser.parse_args()
    with exit_on_error():
        config = load_config(_run_config(arguments.name), schema)
        from common.training.experiment import sample_run

        options: dict[str, Any] = {
            key: getattr(arguments, key)
            for key in ("max_new_tokens", "temperature", "top_k", "top_p", "seed")
        }
        sample_run(
            config,
            build_model,
            arguments.name,
            arguments.checkpoint,
            prompt=arguments.prompt,
            num_samples=arguments.num_samples,
            **options,
        )


def _add_run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", required=True, help="the experiment")
    parser.add_argument(
        "--checkpoint",
        default="best",
        help="best (lowest validation loss, the default), last, or a step such as 500",
    )


def _parser(description: str, examples: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
