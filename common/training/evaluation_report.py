"""Evaluate a trained run on its own text and others: tables, report.json, report.png."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.data.texts import read_texts
from common.data.token_files import Tokens
from common.errors import UsageError
from common.experiments.run_folders import folder_of
from common.models.base import BaseLanguageModel
from common.training.config import SampleConfig
from common.training.evaluator import Evaluator
from common.training.experiment import eval_windows
from common.training.generation_metrics import generation_metrics
from common.training.job import describe
from common.training.objective import NextToken
from common.training.prediction_metrics import PredictionMetrics, measure_predictions
from common.training.trained_run import TrainedRun
from common.utils.files import write_json_atomic
from common.utils.manifest import now
from common.utils.paths import display_path
from common.utils.tables import format_rows

# Welleck et al. 2020, section 6: prefixes of 50 tokens from the validation text, continued by 100.
_PREFIX_TOKENS = 50
_CONTINUATION_TOKENS = 100
_NUM_SAMPLES = 64


def evaluate_run(run: TrainedRun, split: str = "val") -> dict[str, float]:
    """Evaluate a run on a whole split (train or val), print the result and return it.

    Raises UsageError if there is no such split.
    """
    metrics = run.evaluate(split)
    print(f"checkpoint  {display_path(run.checkpoint)}")
    print(describe(split, metrics, run.experiment))
    return metrics


def evaluate_texts(
    run: TrainedRun, split: str, texts: Sequence[Path] = (), *, full_report: bool = False
) -> dict[str, dict[str, float]]:
    """Evaluate a run on a whole split and on other texts, and print the results as a table.

    Args:
        texts: files or folders of text; each is a separate set, named by its file.
        full_report: also write accuracy, calibration, loss by position and diversity of samples to
            report.json and report.png in the run's folder.
    Returns: the printed metrics by set.
    Raises ResearchError; for invalid input, before anything is computed.
    """
    text, model, config = run.text, run.model, run.config
    sets = {split: text.tokens(split), **read_texts(texts, text.tokenizer, taken=[split])}
    windows = {title: eval_windows(config, tokens) for title, tokens in sets.items()}
    token_bytes = text.tokenizer.token_bytes
    if full_report and type(run.experiment.objective) is not NextToken:
        raise UsageError(
            f"--full-report is for models that predict the next token, and '{run.name}' does not",
            "evaluate it without",
        )
    print(f"checkpoint  {display_path(run.checkpoint)}\n")
    if not full_report:
        metrics = Evaluator(model, objective=run.experiment.objective).evaluate_sets(windows)
        print(_table_of_sets(metrics))
        return metrics
    measured = {
        title: measure_predictions(model, batches, token_bytes=token_bytes)
        for title, batches in windows.items()
    }
    metrics = {title: found.scalars() for title, found in measured.items()}
    print(_table_of_sets(metrics))
    floor = text.floor_bits_per_byte if split == "val" else None
    if floor is not None:
        print(f"\nthe entropy of val is {floor:.4f} bits per byte")
    print(f"\nloss by the number of tokens before\n{_table_of_positions(measured)}")
    samples = measure_samples(model, sets[split], config.samples, config.seed)
    rows = [[title, *values.values()] for title, values in samples.items()]
    print(f"\n{format_rows(['text', *next(iter(samples.values()))], rows, 'table')}")
    _write(folder_of(run.name), run.checkpoint, measured, samples, floor)
    return metrics


def measure_samples(
    model: BaseLanguageModel, tokens: Tokens, options: SampleConfig, seed: int
) -> dict[str, dict[str, float]]:
    """Diversity of continuations of prefixes of `tokens`, beside that of the original continuations.

    No continuation ends early, so that all texts have the same length and are comparable.
    """
    length = min(_PREFIX_TOKENS + _CONTINUATION_TOKENS, len(tokens))
    prefix = max(1, min(_PREFIX_TOKENS, length // 3))
    count = min(_NUM_SAMPLES, len(tokens) // length)
    starts = np.linspace(0, len(tokens) - length, count).astype(int)
    windows = torch.from_numpy(tokens[starts[:, None] + np.arange(length)].astype(np.int64))

    def continued(temperature: float, **cuts: Any) -> dict[str, float]:
        written = model.generate(
            windows[:, :prefix], length - prefix, temperature=temperature, seed=seed, **cuts
        )
        return generation_metrics(written[:, prefix:].tolist())

    sampled = f"sampled (temperature {options.temperature:g})"
    return {
        "the text itself": generation_metrics(windows[:, prefix:].tolist()),
        sampled: continued(options.temperature, top_k=options.top_k, top_p=options.top_p),
        "greedy": continued(0),
    }


def _table_of_sets(metrics: Mapping[str, Mapping[str, float]]) -> str:
    names = ["loss", "loss_standard_error", "perplexity", "perplexity_bound"]
    names += ["bits_per_byte", "bits_per_byte_bound", "accuracy", "top5_accuracy"]
    names = [*names, "calibration_error", "num_tokens"]
    shown = [name for name in names if any(name in found for found in metrics.values())]
    rows = [[title, *map(found.get, shown)] for title, found in metrics.items()]
    return format_rows(["set", *shown], rows, "table")


def _table_of_positions(measured: Mapping[str, PredictionMetrics]) -> str:
    """Mean losses after 1, 2-3, 4-7, ... preceding tokens."""
    longest = max(len(found.position_loss) for found in measured.values())
    firsts = [2**power for power in range(math.ceil(math.log2(longest)))]
    lasts = [min(2 * first, longest) - 1 for first in firsts]
    columns = [str(a) if a == b else f"{a}-{b}" for a, b in zip(firsts, lasts, strict=True)]
    rows = []
    for title, found in measured.items():
        nats = np.nan_to_num(found.position_loss) * found.position_counts
        row: list[object] = [title]
        for first, last in zip(firsts, lasts, strict=True):
            count = found.position_counts[first : last + 1].sum()
            row.append(float(nats[first : last + 1].sum() / count) if count else None)
        rows.append(row)
    return format_rows(["set", *columns], rows, "table")


def _write(
    directory: Path,
    checkpoint: Path,
    measured: Mapping[str, PredictionMetrics],
    samples: Mapping[str, Mapping[str, float]],
    floor: float | None,
) -> None:
    from common.training.evaluation_plot import plot_evaluation  # Matplotlib takes half a second

    report = {
        "name": directory.name,
        "checkpoint": checkpoint.name,
        "created": now(),
        "floor_bits_per_byte": floor,
        "sets": {
            title: found.scalars()
            | {
                "position_loss": found.position_loss,
                "position_counts": found.position_counts,
                "calibration": asdict(found.calibration),
            }
            for title, found in measured.items()
        },
        "samples": samples,
    }
    write_json_atomic(directory / "report.json", json_ready(report))
    title = f"{directory.name}, {checkpoint.name}"
    plot_evaluation(measured, title=title, output=directory / "report.png")
    print(f"\nreport      {display_path(directory / 'report.json')}")
    print(f"picture     {display_path(directory / 'report.png')}")


def json_ready(value: Any) -> Any:
    """Convert arrays to lists, and NaN and infinities, which JSON lacks, to None."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): json_ready(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
