"""Rerun an experiment from its commit, configuration and seed, and compare bit for bit."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from common.errors import exit_on_error

if TYPE_CHECKING:
    from apps.reproduction.differences import RowComparison, WeightComparison
    from apps.reproduction.reproduce import Reproduction

EPILOG = """examples:
  python tools/reproduce.py exp_001
  python tools/reproduce.py exp_001 --steps 200
  python tools/reproduce.py exp_001 --name exp_001_on_the_cluster

Exit code 0: identical; 1: different; 2: the rerun failed."""
_MOST_TENSORS = 5


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("experiment", metavar="EXPERIMENT")
    parser.add_argument("--name", help="name of the rerun (default: EXPERIMENT_reproduced)")
    parser.add_argument("--steps", type=int, metavar="N", help="compare only the first N steps")
    parser.add_argument(
        "--keep", action="store_true", help="keep the temporary folder with the code"
    )
    arguments = parser.parse_args()
    if arguments.steps is not None and arguments.steps < 1:
        parser.error(f"--steps must be at least 1, got {arguments.steps}")
    with exit_on_error():
        from apps.reproduction.reproduce import reproduce

        result = reproduce(
            arguments.experiment, arguments.name, steps=arguments.steps, keep=arguments.keep
        )
        print(describe(result))
        sys.exit(0 if result.identical else 1)


def describe(result: Reproduction) -> str:
    """Format the result in a few lines."""
    from apps.reproduction.reproduce import changed_resumes

    experiment, rerun = result.experiment, result.rerun
    dirty = " with uncommitted changes" if experiment["git_diff"] else ""
    lines = [
        f"experiment   {experiment['name']}: commit {experiment['git_commit'][:12]}{dirty}, "
        f"seed {experiment['seed']}",
        f"rerun        {rerun['name']}: {rerun['status']}, archived, so that it does not count as "
        "another seed",
        f"environment  {_environment(result)}",
        f"metrics      {_metrics(result.metrics)}",
        f"weights      {_weights(result.weights)}",
    ]
    lines += [f"note         the experiment was {line}" for line in changed_resumes(experiment)]
    if result.damage:
        lines.append(f"note         {result.damage}")
    return "\n".join(lines)


def _environment(result: Reproduction) -> str:
    found = [f"{key} {then} -> {now}" for key, (then, now) in result.environment.items()]
    return f"different: {', '.join(found)}" if found else "the same"


def _metrics(metrics: RowComparison) -> str:
    left_out = f"; not compared: {', '.join(sorted(metrics.left_out))}" if metrics.left_out else ""
    first = metrics.first
    if first is None:
        return f"identical: {metrics.values:,} values in {metrics.rows:,} rows{left_out}"
    by = "" if first.relative is None else f", relative difference {first.relative:.2g}"
    return (
        f"different from step {first.step} ({first.split}) on: {first.metric} "
        f"{_number(first.then)} -> {_number(first.now)}{by}\n"
        f"             {metrics.different:,} of {metrics.values:,} values differ{left_out}"
    )


def _number(value: float | None) -> str:
    return "not logged" if value is None else repr(value)


def _weights(weights: WeightComparison | None) -> str:
    if weights is None:
        return "not compared: no common checkpoint"
    total = f"{weights.tensors} tensors of step {weights.step}"
    if not weights.different:
        return f"identical: {total}"
    lines = [f"different: {len(weights.different)} of {total}"]
    for tensor in weights.different[:_MOST_TENSORS]:
        largest = (
            "" if tensor.largest is None else f", the largest difference is {tensor.largest:.2g}"
        )
        lines.append(f"             {tensor.name}: {tensor.reason}{largest}")
    if len(weights.different) > _MOST_TENSORS:
        lines.append(f"             and {len(weights.different) - _MOST_TENSORS} more")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
