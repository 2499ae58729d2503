"""Compress a trained run: prune, quantise, measure before and after, store as an experiment."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from apps.export.config import Pruning
from apps.export.prune import prune
from apps.export.readback import check_logits, probe
from common.config import dump_config
from common.errors import ConfigError, ExperimentError, ModelError
from common.experiments.run import start_experiment
from common.models.base import BaseLanguageModel
from common.models.checkpoint import load_checkpoint, weights_of
from common.models.config import DecoderConfig
from common.models.quantization import Quantization
from common.models.quantize import quantize
from common.training.config import ExperimentConfig
from common.training.trained_run import TrainedRun, load_run
from common.utils.paths import get_runs_dir

C = TypeVar("C", bound=ExperimentConfig)
RESIZING = ("heads", "neurons")  # these change the sizes in the configuration
_TOKENS, _REPEATS = 64, 5  # for the measurement of generation speed


@dataclass(frozen=True)
class Measured:
    """loss: nats per token on the validation split; megabytes (10^6): size of the weights;
    tokens_per_second: speed of greedy generation of one text on this machine."""

    loss: float
    bits_per_byte: float
    megabytes: float
    tokens_per_second: float


def compress_run(
    run: TrainedRun,
    *,
    new_name: str,
    prunings: Sequence[Pruning] = (),
    quantization: Quantization | None = None,
) -> tuple[Measured, Measured]:
    """Compress `run`, save the result as the experiment `new_name`, and measure both.

    Applies all prunings in the given order, then quantisation. The new experiment is loaded again
    before it is measured, so it can be evaluated, sampled, exported and compared like any other.
    """
    if not prunings and quantization is None:
        raise ConfigError("nothing to do", "add --quantize int8, or --prune neurons=0.25")
    if (get_runs_dir() / new_name).exists():  # such as of a deleted experiment
        raise ExperimentError(f"a run '{new_name}' already exists", "choose another name with --to")
    model, path = run.model, run.checkpoint
    if quantization is not None and model.quantization is not None:
        raise ModelError("the model is already quantised", "quantise the original model")
    original, losses, sizes = model, [run.evaluate()], [_megabytes(model)]
    for pruning in prunings:
        model = prune(model, pruning)
    parameters = model.num_parameters()
    config = _config_of(run.config, model, resized=any(p.kind in RESIZING for p in prunings))
    if quantization is not None:
        model = copy.deepcopy(model)
        quantize(model, quantization)
    state = load_checkpoint(path).state
    step = int(state.get("step", path.name.removeprefix("step_")))
    with start_experiment(
        new_name,
        project=run.project,
        config=config.model_dump(mode="json"),
        config_text=dump_config(config),
        seed=config.seed,
        tags=[f"compressed:{run.name}"],
        system_metrics_seconds=None,
    ) as kept:
        model.save_checkpoint(
            kept.directory / "checkpoints" / path.name, fingerprint=run.text.fingerprint, step=step
        )
        written = model
        again = load_run(new_name, "last")
        model = again.model
        _check_read_back(written, model)
        losses.append(again.evaluate())
        sizes.append(_megabytes(model))
        kept.update(parameters=parameters, compressed_from=run.name)
        kept.log({**losses[1], "megabytes": sizes[1]}, step=step, split="val")
    speeds = _generation_speeds([original, model], run.text.tokenizer.end_of_text)
    before, after = (
        Measured(loss["loss"], loss["bits_per_byte"], size, speed)
        for loss, size, speed in zip(losses, sizes, speeds, strict=True)
    )
    return before, after


def _check_read_back(written: BaseLanguageModel, read: BaseLanguageModel) -> None:
    """Raise ModelError, leaving the experiment unfinished, unless both give the same logits."""
    probes = probe(written)
    found = [logits for _, logits in probe(read)]
    check_logits(probes, found, "f32", "the checkpoint, read back,")


def _megabytes(model: BaseLanguageModel) -> float:
    """Bytes of the weights in a checkpoint."""
    return sum(tensor.nbytes for tensor in weights_of(model).values()) / 1e6


def _generation_speeds(models: Sequence[BaseLanguageModel], start: int) -> list[float]:
    """Tokens per second of each model, from its fastest text, since other load only slows it.

    Models alternate, so that other load affects all of them.
    """
    seconds: list[list[float]] = [[] for _ in models]
    counts = [min(_TOKENS, (model.context_limit or _TOKENS + 1) - 1) for model in models]
    for _ in range(_REPEATS):
        for model, count, times in zip(models, counts, seconds, strict=True):
            began = time.perf_counter()
            model.generate(torch.tensor([[start]]), count, temperature=0)
            times.append(time.perf_counter() - began)
    return [count / min(times) for count, times in zip(counts, seconds, strict=True)]


def _config_of(config: C, model: BaseLanguageModel, resized: bool) -> C:
    """The configuration that builds `model`, which may have been `resized`."""
    if not resized:
        return config
    settings: Any = getattr(config, "model", None)
    if not isinstance(settings, DecoderConfig):
        raise ConfigError(
            "the project's configuration has no Decoder in `model`: cannot build a smaller one",
            "prune by magnitude, or quantise",
        )
    smaller = type(settings)(**settings.model_dump() | model.arguments)
    return config.model_copy(update={"model": smaller})
