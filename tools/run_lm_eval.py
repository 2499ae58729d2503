"""Evaluate a trained run on tasks of EleutherAI's lm-evaluation-harness, from local files."""

from __future__ import annotations

import argparse
import json
import os
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import exit_on_error
from common.training.trained_run import load_run
from common.utils.arguments import positive_int
from common.utils.files import write_json_atomic
from common.utils.paths import display_path, get_runs_dir

if TYPE_CHECKING:
    from apps.evaluation.lm_eval_adapter import HarnessModel

EXAMPLES = """examples:
  python tools/run_lm_eval.py exp_001 --tasks my_tasks/capitals.yaml
  python tools/run_lm_eval.py exp_001 --tasks my_tasks --limit 100
  python tools/run_lm_eval.py exp_001 --tasks capitals colours --include-path my_tasks

Requires the harness: uv pip install -e ".[lm-eval]". Nothing is downloaded unless HF_HUB_OFFLINE=0
is set; `data_files` of a task are relative to the current folder. Results are written to
evaluations/ in the run's folder, in the harness's format."""


def main() -> None:
    arguments = _parser().parse_args()
    with exit_on_error():
        # Read once, on import of the libraries.
        offline = os.environ.setdefault("HF_HUB_OFFLINE", "1")
        os.environ.setdefault("HF_DATASETS_OFFLINE", offline)
        model, checkpoint = load_model(arguments.name, arguments.checkpoint, arguments.batch_size)
        from lm_eval.utils import make_table

        from apps.evaluation.lm_eval_adapter import run_tasks

        results = run_tasks(
            model,
            arguments.tasks,
            include_paths=arguments.include_path,
            num_fewshot=arguments.num_fewshot,
            limit=arguments.limit,
            log_samples=arguments.log_samples,
        )
        print(f"checkpoint  {display_path(checkpoint)}\n")
        print(make_table(results))
        if results.get("groups"):
            print(make_table(results, "groups"))
        print(f"results     {display_path(store(arguments.name, checkpoint, results))}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("name", metavar="NAME", help="the experiment")
    add("--tasks", nargs="+", required=True, metavar="TASK", help="YAML files, folders or names")
    add(
        "--include-path",
        nargs="+",
        action="extend",
        default=[],
        type=Path,
        metavar="DIR",
        help="where named tasks are",
    )
    add("--checkpoint", default="best", help="best (default), last, or a step such as 500")
    add("--limit", type=positive_int, metavar="N", help="maximum questions per task")
    add("--num-fewshot", type=int, metavar="N", help="examples before each question")
    add("--batch-size", type=positive_int, default=32, metavar="N", help="batch size (default 32)")
    add("--log-samples", action="store_true", help="also store every question and answer")
    return parser


def load_model(name: str, which: str, batch_size: int) -> tuple[HarnessModel, Path]:
    """Return the model of run `name` for the harness, and its checkpoint. Raises ResearchError."""
    run = load_run(name, which)
    from apps.evaluation.lm_eval_adapter import HarnessModel

    model = HarnessModel(run.model, run.text.tokenizer, batch_size=batch_size, seed=run.config.seed)
    return model, run.checkpoint


def store(name: str, checkpoint: Path, results: dict[str, Any]) -> Path:
    """Write `results` to a new file in the run's folder and return its path."""
    from lm_eval.utils import handle_non_serializable

    from common.training.evaluation_report import json_ready

    plain = json.loads(json.dumps(results, default=handle_non_serializable))
    moment = datetime.now().strftime("%Y%m%d_%H%M%S_%f")
    path = get_runs_dir() / name / "evaluations" / f"lm_eval_{moment}.json"
    run = {"name": name, "checkpoint": checkpoint.name}
    write_json_atomic(path, json_ready({"run": run, **plain}))
    return path


if __name__ == "__main__":
    main()
