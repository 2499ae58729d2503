"""The main job, called by common/cli.py: build an experiment, train, evaluate, sample, store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch

from common.config import dump_config, load_config
from common.errors import CheckpointError, ConfigError, ExperimentError
from common.experiments.conditions import diff_configs, holds_quick
from common.experiments.metrics import VAL_QUICK
from common.experiments.recovery import open_catalogue
from common.experiments.run import Run, start_experiment
from common.experiments.run_folders import folder_of
from common.models.base import BaseModel
from common.terminal import show
from common.training.callbacks.base import Callback
from common.training.callbacks.early_stopping import EarlyStopping
from common.training.callbacks.progress import ProgressBar
from common.training.callbacks.samples import Samples
from common.training.checkpoints import steps_in
from common.training.config import FREE_ON_RESUME, BaseExperimentConfig, TrainingConfig
from common.training.distributed import DistributedContext, join_context
from common.training.experiment import Experiment, build_experiment
from common.training.optimizers import check_optimizer
from common.training.parallel import check_distributed
from common.training.precision import check_precision
from common.training.projects import recorded_config
from common.training.trainer import Trainer, check_activation_checkpointing
from common.utils.logging import get_logger
from common.utils.paths import display_path
from common.utils.seeding import seed_everything

C = TypeVar("C", bound=BaseExperimentConfig)
log = get_logger("experiment")


def train_experiment(
    config: C,
    build: Callable[[C], Experiment],
    *,
    project: str,
    name: str | None = None,
    prefix: str = "experiment",
    tags: Sequence[str] = (),
    resume: bool = False,
    resume_anyway: bool = False,
    extend: str | None = None,
    share_auto: Path | None = None,
) -> dict[str, float]:
    """Train the experiment built from `config`; return its final validation metrics.

    All input is validated before the experiment name is claimed. `extend` names another experiment,
    whose last checkpoint training continues from. `share_auto` is a file through which several runs
    agree on precision and compilation that are `auto`.
    Raises ResearchError, and Interrupted after a signal.
    """
    changes: dict[str, list[Any]] = {}
    with join_context(config.training.device) as context:
        if resume and context.is_main:
            name = name or _newest_resumable(config, project)
            changes = _changes_of_config(config, name, resume_anyway)
        if extend is not None:
            _check_extendable(config, extend)
        experiment = _build(config, build, project, context)
        with _start_run(config, context, name, prefix, project, tags, resume, extend) as run:
            if run is not None:
                run.update(parameters=experiment.model.num_parameters(), **_facts(experiment, run))
            experiment.callbacks += _callbacks(config.training, run)
            trainer = Trainer(
                experiment,
                config.training,
                optimizer=config.optimizer,
                schedule=config.schedule,
                run=run,
                context=context,
                share_auto=share_auto,
            )
            if resume:
                trainer.resume(resume_anyway, changes)
                if run is not None:
                    _record_config(config, run)
            extends = context.from_main(run.manifest.get("extends") if run else None)
            if extends is not None and trainer.step == 0:
                _extend(trainer, config, extends)
            trainer.set_up()
            if run is not None:
                _announce(trainer, run)
            metrics = trainer.fit()
        if run is not None:
            _report(metrics, trainer, run)
        return metrics


def _build(
    config: C, build: Callable[[C], Experiment], project: str, context: DistributedContext
) -> Experiment:
    """Build the experiment and check all that needs no run; rank 0 prepares the data first."""
    check_precision(config.training.precision, context.device)
    check_distributed(config.training, config.optimizer, context)
    if context.world_size == 1 and config.training.distributed != "auto":
        log.warning(
            f"training.distributed={config.training.distributed} has no effect in one process: "
            "start several with torchrun --nproc-per-node N"
        )
    if config.training.num_threads is not None:
        torch.set_num_threads(config.training.num_threads)
    seed_everything(config.seed)
    with context.main_first():
        experiment = build_experiment(build, config, project)
    check_optimizer(experiment.model, config.optimizer)
    check_activation_checkpointing(experiment.model, config.training)
    return experiment


def _check_extendable(config: BaseExperimentConfig, name: str) -> None:
    steps = steps_in(folder_of(name) / "checkpoints")
    if not steps:
        raise CheckpointError(f"'{name}' has no checkpoint to continue from", "train it first")
    if steps[-1] >= config.training.max_steps:
        raise ConfigError(
            f"'{name}' already has {steps[-1]} steps, and training.max_steps is "
            f"{config.training.max_steps}",
            f"give the total number of steps, for example training.max_steps={2 * steps[-1]}",
        )


def _extend(trainer: Trainer, config: BaseExperimentConfig, name: str) -> None:
    before = recorded_config(name, type(config)).model_dump(mode="json")
    changes = _decisive_changes(before, config.model_dump(mode="json"))
    shown = "; ".join(f"{key}: {was} -> {now}" for key, (was, now) in changes.items())
    log.info(f"continuing from the last checkpoint of '{name}' with changes ({shown})")
    trainer.extend(folder_of(name) / "checkpoints", changes)


@contextmanager
def _start_run(
    config: BaseExperimentConfig,
    context: DistributedContext,
    name: str | None,
    prefix: str,
    project: str,
    tags: Sequence[str],
    resume: bool,
    extend: str | None,
) -> Iterator[Run | None]:
    """Start the run in the store; only rank 0 has one."""
    if not context.is_main:
        yield None
        return
    with start_experiment(
        name,
        prefix=prefix,
        project=project,
        config=config.model_dump(mode="json"),
        config_text=dump_config(config),
        seed=config.seed,
        tags=tags,
        resume=resume,
        facts={} if extend is None else {"extends": extend},
    ) as run:
        yield run


def _facts(experiment: Experiment, run: Run) -> Mapping[str, Any]:
    facts = experiment.facts
    if holds_quick(run.manifest):  # started by an earlier version: keep its splits
        data = {key: value for key, value in facts["data_fingerprint"].items() if key != VAL_QUICK}
        facts = {**facts, "data_fingerprint": data}
    return facts


def _callbacks(config: TrainingConfig, run: Run | None) -> list[Callback]:
    """Callbacks of the configuration; all ranks need early stopping, only rank 0 the rest."""
    callbacks: list[Callback] = []
    if run is not None:
        callbacks.append(ProgressBar())
    if config.early_stopping_patience is not None:
        callbacks.append(EarlyStopping(config.early_stopping_patience))
    if run is None:
        return callbacks
    if config.tensorboard:
        from common.training.callbacks.tensorboard import TensorBoard

        callbacks.append(TensorBoard(run.directory / "tensorboard"))
    if config.wandb != "off":
        from common.training.callbacks.wandb import WandB

        callbacks.append(WandB(run, config.wandb))
    if config.profile_steps is not None:
        from common.training.callbacks.profiler import Profiler

        callbacks.append(Profiler(run.directory / "profile", *config.profile_steps))
    return callbacks


def _newest_resumable(config: C, project: str) -> str:
    """Find the latest unfinished run of this project and configuration."""
    wanted = config.model_dump(mode="json")
    catalogue = open_catalogue()
    for run in reversed(catalogue.overview()):
        unfinished = run.status in ("died", "interrupted", "failed") and run.project == project
        if unfinished and not _decisive_changes(catalogue.manifest(run.name)["config"], wanted):
            return run.name
    raise ExperimentError(
        f"no unfinished run of {project} has this configuration",
        "leave out --resume, or add --name",
    )


def _changes_of_config(config: C, name: str, anyway: bool) -> dict[str, list[Any]]:
    """Return {key: [before, now]} of changed keys that affect weights or rows; without `anyway` raise ConfigError."""
    if name not in open_catalogue().names():
        return {}  # killed before its first record, or missing: start_experiment handles both
    recorded = recorded_config(name, type(config))
    _warn_of_edited_file(recorded, name)
    different = _decisive_changes(recorded.model_dump(mode="json"), config.model_dump(mode="json"))
    if different:
        changes = "; ".join(f"{key}: {was} -> {now}" for key, (was, now) in different.items())
        if not anyway:
            raise ConfigError(
                f"'{name}' was started with a different configuration ({changes})",
                f"keep its configuration: --name {name} --resume without --config and overrides, or "
                "use the new one with --resume-anyway",
            )
        log.warning(f"resuming with a different configuration: {changes}")
    return different


def _warn_of_edited_file(recorded: BaseExperimentConfig, name: str) -> None:
    path = folder_of(name) / "config.yaml"
    try:
        edited = path.exists() and load_config(path, type(recorded)) != recorded
    except ConfigError:
        edited = True
    if edited:
        log.warning(
            f"{display_path(path)} was edited, but is only a copy: '{name}' continues as recorded; "
            "to change it: --resume-anyway key.path=value"
        )


def _decisive_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Keys that differ between two configurations and affect weights or rows."""
    different = diff_configs([before, now])
    return {key: values for key, values in different.items() if key not in FREE_ON_RESUME}


def _record_config(config: BaseExperimentConfig, run: Run) -> None:
    """Record this configuration as the run's, for the next resume and for readers."""
    values = config.model_dump(mode="json")
    if values != run.manifest["config"]:
        run.update(config=values, seed=config.seed)
    run.write_config_file(dump_config(config))


def _announce(trainer: Trainer, run: Run) -> None:
    how = [trainer.precision, *(["compiled"] if trainer.compiled else [])]
    if (count := trainer.context.world_size) > 1:
        how.append(f"{count} processes")
    text = ""
    if trainer.experiment.has_text:
        data = trainer.experiment.text
        sizes = {split: f"{facts['tokens']:,}" for split, facts in data.meta["splits"].items()}
        text = (
            f"; {data.meta['dataset']}: {sizes['train']} training and {sizes['val']} validation "
            f"tokens, vocabulary {data.tokenizer.vocab_size:,}"
        )
    log.info(
        f"{run.name}: {_count_parameters(trainer.model)} on {trainer.device.type} "
        f"({', '.join(how)}){text}"
    )


def _count_parameters(model: BaseModel) -> str:
    total, trained = model.num_parameters(), model.num_parameters(trained=True)
    only = "" if trained == total else f", {trained:,} of them trained,"
    return f"{total:,} parameters{only}"


def _report(metrics: dict[str, float], trainer: Trainer, run: Run) -> None:
    """Print the result, a sample, the run folder and the next commands."""
    samples = next((c for c in trainer.callbacks if isinstance(c, Samples)), None)
    for text in samples.latest if samples else []:
        show(f"\n--- sample ---\n{text}")
    print("\n--- result ---")
    print(describe("validation", metrics, trainer.experiment))
    print(f"experiment  {display_path(Path(run.manifest['file']))}")
    print(f"run folder  {display_path(run.directory)}  (config, manifest, checkpoints, samples)")
    script = f"python projects/{run.manifest['project']}"
    if samples:
        prompt = samples.config.prompts[0]
        print(f"next        {script}/sample.py --name {run.name} --prompt {prompt!r}")
    else:
        print(f"next        {script}/evaluate.py --name {run.name}")
    print(f"            python tools/query_experiments.py --compare {run.name} ANOTHER")


def describe(split: str, metrics: Mapping[str, float], experiment: Experiment) -> str:
    """The metrics of a split in a line, and on another the known lower bound."""
    if not metrics:
        return f"{split:10}  not evaluated: no validation data"
    lines = [f"{split:10}  {experiment.objective.describe(metrics)}"]
    floor = experiment.facts.get("floor_bits_per_byte")
    if floor is not None and split in ("validation", "val"):
        bound = metrics.get("bits_per_byte_bound")
        above = (metrics["bits_per_byte"] if bound is None else bound) - floor
        lines.append(
            f"floor       {floor:.4f} bits per byte is the entropy of this text: "
            f"{'' if bound is None else 'at most '}{above:.4f} above"
        )
    return "\n".join(lines)
