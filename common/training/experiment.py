"""The main job from a configuration: prepare, train, evaluate, sample, store. Called by common/cli.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import torch

from common.config import dump_config, load_config
from common.data.batch import BatchSource
from common.data.loader import (
    EvalWindows,
    MixedWindows,
    RandomWindows,
    ShuffledWindows,
)
from common.data.prepare import prepare
from common.data.texts import read_texts
from common.data.token_files import TokenDataset, TokenMixture, Tokens
from common.errors import CheckpointError, ConfigError, ExperimentError, did_you_mean
from common.experiments.conditions import diff_configs, holds_quick
from common.experiments.metrics import VAL_QUICK
from common.experiments.recovery import open_catalogue
from common.experiments.run import Run, start_experiment
from common.experiments.run_folders import folder_of
from common.models.base import BaseLanguageModel
from common.models.checkpoint import load_checkpoint
from common.projects import recorded_config
from common.training.callbacks.base import Callback
from common.training.callbacks.early_stopping import EarlyStopping
from common.training.callbacks.efficiency import Efficiency
from common.training.callbacks.progress import ProgressBar
from common.training.callbacks.samples import Samples
from common.training.checkpoints import best_checkpoint, steps_in
from common.training.config import FREE_ON_RESUME, ExperimentConfig
from common.training.distributed import DistributedContext, check_distributed, join_context
from common.training.evaluator import Evaluator
from common.training.optimizers import check_optimizer
from common.training.precision import check_precision, select_device
from common.training.trainer import Trainer, check_activation_checkpointing
from common.utils.logging import get_logger
from common.utils.paths import display_path
from common.utils.seeding import seed_everything
from common.utils.terminal import show

C = TypeVar("C", bound=ExperimentConfig)
BuildModel = Callable[[C, int], BaseLanguageModel]
log = get_logger("experiment")


def train_experiment(
    config: C,
    build_model: BuildModel[C],
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
    """Run the experiment that `config` defines and return its final validation metrics.

    Everything that can be wrong with the input is found before the name of the experiment is
    taken. `extend` names another experiment: training goes on from its last checkpoint. With `share_auto`, a file, several runs agree on precision and compilation where those are
    `auto`. Raises ResearchErrors, and Interrupted after a signal.
    """
    changes: dict[str, list[Any]] = {}
    with join_context(config.training.device) as context:
        if resume and context.is_main:
            name = name or _newest_resumable(config, project)
            changes = _changes_of_config(config, name, resume_anyway)
        if extend is not None:
            _check_extendable(config, extend)
        check_precision(config.training.precision, context.device)
        check_distributed(config.training, config.optimizer, context)
        if context.world_size == 1 and config.training.distributed != "auto":
            log.warning(
                f"training.distributed={config.training.distributed} does nothing in one process: "
                "start several with torchrun --nproc-per-node N"
            )
        if config.training.num_threads is not None:
            torch.set_num_threads(config.training.num_threads)
        with context.main_first():
            data = prepare(config.data)
        data.tokenizer.encode_batch(config.samples.prompts)
        seed_everything(config.seed)
        model = _build(config, build_model, data)
        train_data = _train_windows(config, data)
        others = _other_texts(config, data)
        check_optimizer(model, config.optimizer)
        check_activation_checkpointing(model, config.training)
        with _start_run(config, context, name, prefix, project, tags, resume, extend) as run:
            trainer = _create_trainer(
                config, model, train_data, data, others, run, context, share_auto
            )
            if resume:
                trainer.resume(resume_anyway, changes)
                if run is not None:
                    _record_config(config, run)
            extends = context.from_main(run.manifest.get("extends") if run else None)
            if extends is not None and trainer.step == 0:
                _extend(trainer, config, extends)
            if run is not None:
                _announce(config, data, trainer, run)
            metrics = trainer.fit()
            if run is not None:
                run.update(tokens=trainer.tokens)
        if run is not None:
            _report(metrics, trainer, data, run)
        return metrics


def _check_extendable(config: ExperimentConfig, name: str) -> None:
    steps = steps_in(folder_of(name) / "checkpoints")
    if not steps:
        raise CheckpointError(f"'{name}' has no checkpoint to go on from", "train it first")
    if steps[-1] >= config.training.max_steps:
        raise ConfigError(
            f"'{name}' has {steps[-1]} steps already, and training.max_steps is "
            f"{config.training.max_steps}",
            f"give the steps in all, for example training.max_steps={2 * steps[-1]}",
        )


def _extend(trainer: Trainer, config: ExperimentConfig, name: str) -> None:
    before = recorded_config(name, type(config)).model_dump(mode="json")
    changes = _decisive_changes(before, config.model_dump(mode="json"))
    shown = "; ".join(f"{key}: {was} -> {now}" for key, (was, now) in changes.items())
    log.info(f"going on from the last checkpoint of '{name}' with other values ({shown})")
    trainer.extend(folder_of(name) / "checkpoints", changes)


def _build(config: C, build_model: BuildModel[C], data: TokenDataset) -> BaseLanguageModel:
    model = build_model(config, data.tokenizer.vocab_size)
    if config.data.document_mask:
        model.mask_documents(data.tokenizer.end_of_text)
    return model


@contextmanager
def _start_run(
    config: ExperimentConfig,
    context: DistributedContext,
    name: str | None,
    prefix: str,
    project: str,
    tags: Sequence[str],
    resume: bool,
    extend: str | None,
) -> Iterator[Run | None]:
    """The experiment in the store; of several processes only the main one has it."""
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


def _create_trainer(
    config: ExperimentConfig,
    model: BaseLanguageModel,
    train_data: BatchSource,
    data: TokenDataset,
    others: Mapping[str, Tokens],
    run: Run | None,
    context: DistributedContext,
    share_auto: Path | None,
) -> Trainer:
    few = config.training.eval_batches
    if run is not None:
        # One that an earlier version began has losses of few batches in `val`, and remains without.
        names_few = few and not holds_quick(run.manifest)
        batches = _fingerprint_of_few(config, data) if names_few else {}
        run.update(
            parameters=model.num_parameters(),
            floor_bits_per_byte=data.floor_bits_per_byte,
            data_fingerprint=data.fingerprint | batches,
            tokenizer=data.meta["tokenizer_sha256"],
        )
    return Trainer(
        model,
        train_data,
        config.training,
        optimizer=config.optimizer,
        schedule=config.schedule,
        val_data=eval_windows(config, data, "val"),
        quick_val_data=eval_windows(config, data, "val", few) if few else None,
        other_val_data={name: _windows_over(config, tokens) for name, tokens in others.items()},
        run=run,
        callbacks=_callbacks(config, data, run),
        token_bytes=data.tokenizer.token_bytes,
        tokens_per_epoch=data.meta["splits"]["train"]["tokens"],
        fingerprint=data.fingerprint | _fingerprint_of(others),
        context=context,
        share_auto=share_auto,
    )


def _train_windows(config: ExperimentConfig, data: TokenDataset) -> BatchSource:
    if isinstance(data, TokenMixture):
        return MixedWindows(
            [source.tokens("train") for source in data.sources.values()],
            [*data.weights.values()],
            batch_size=config.data.batch_size,
            context_length=config.context_length,
            seed=config.seed,
        )
    windows = RandomWindows if config.data.sampling == "random" else ShuffledWindows
    return windows(
        data.tokens("train"),
        batch_size=config.data.batch_size,
        context_length=config.context_length,
        seed=config.seed,
    )


def _other_texts(config: ExperimentConfig, data: TokenDataset) -> dict[str, Tokens]:
    """Tokens of every text of `data.more_validation` by the name of its file, and of each source."""
    texts = read_texts(
        config.data.more_validation, data.tokenizer, taken=["train", "val", VAL_QUICK]
    )
    if isinstance(data, TokenMixture):
        texts |= {f"val {name}": source.tokens("val") for name, source in data.sources.items()}
    return texts


def _fingerprint_of_few(config: ExperimentConfig, data: TokenDataset) -> dict[str, str]:
    """Equal for runs whose evaluations on the way take the same windows of the same tokens."""
    tokens = [value for key, value in data.fingerprint.items() if key.endswith("val")]
    windows = config.training.eval_batches, config.data.eval_batch_size, config.context_length
    return {VAL_QUICK: sha256(repr((tokens, windows)).encode()).hexdigest()}


def _fingerprint_of(texts: Mapping[str, Tokens]) -> dict[str, str]:
    return {f"text {name}": sha256(tokens.tobytes()).hexdigest() for name, tokens in texts.items()}


def eval_windows(
    config: ExperimentConfig, data: TokenDataset, split: str, max_batches: int | None = None
) -> EvalWindows:
    """Batches over a whole split, or over `max_batches` spread across it."""
    return _windows_over(config, data.tokens(split), max_batches)


def _windows_over(
    config: ExperimentConfig, tokens: Tokens, max_batches: int | None = None
) -> EvalWindows:
    return EvalWindows(
        tokens,
        batch_size=config.data.eval_batch_size,
        context_length=config.context_length,
        max_batches=max_batches,
    )


def _callbacks(config: ExperimentConfig, data: TokenDataset, run: Run | None) -> list[Callback]:
    """What happens besides training; early stopping and samples concern every process."""
    callbacks: list[Callback] = []
    if run is not None:
        callbacks += [ProgressBar(), Efficiency(config.context_length)]
    path = None if run is None else run.directory / "samples.jsonl"
    callbacks.append(Samples(path, data.tokenizer, config.samples, config.seed))
    if config.training.early_stopping_patience is not None:
        callbacks.append(EarlyStopping(config.training.early_stopping_patience))
    if run is None:
        return callbacks
    if config.training.tensorboard:
        from common.training.callbacks.tensorboard import TensorBoard

        callbacks.append(TensorBoard(run.directory / "tensorboard"))
    if config.training.wandb != "off":
        from common.training.callbacks.wandb import WandB

        callbacks.append(WandB(run, config.training.wandb))
    if config.training.profile_steps is not None:
        from common.training.callbacks.profiler import Profiler

        callbacks.append(Profiler(run.directory / "profile", *config.training.profile_steps))
    return callbacks


def _newest_resumable(config: C, project: str) -> str:
    """The unfinished run of this project and configuration that was started last."""
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
    """{key: [before, now]} of what decides weights or rows. Raises ConfigError without `anyway`."""
    if name not in open_catalogue().names():
        return {}  # killed before its first record, or not there: start_experiment knows
    recorded = recorded_config(name, type(config))
    _warn_of_edited_file(recorded, name)
    different = _decisive_changes(recorded.model_dump(mode="json"), config.model_dump(mode="json"))
    if different:
        changes = "; ".join(f"{key}: {was} -> {now}" for key, (was, now) in different.items())
        if not anyway:
            raise ConfigError(
                f"'{name}' was started with another configuration ({changes})",
                f"resume with its own: --name {name} --resume without --config and overrides, or "
                "take the new one with --resume-anyway",
            )
        log.warning(f"resuming with another configuration: {changes}")
    return different


def _warn_of_edited_file(recorded: ExperimentConfig, name: str) -> None:
    path = folder_of(name) / "config.yaml"
    try:
        edited = path.exists() and load_config(path, type(recorded)) != recorded
    except ConfigError:
        edited = True
    if edited:
        log.warning(
            f"{display_path(path)} was edited, and is only a copy: '{name}' goes on as recorded; "
            "to change it: --resume-anyway key.path=value"
        )


def _decisive_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The keys on which two configurations differ, but for those that decide no weight and no row."""
    different = diff_configs([before, now])
    return {key: values for key, values in different.items() if key not in FREE_ON_RESUME}


def _record_config(config: ExperimentConfig, run: Run) -> None:
    """From now on the run has this configuration: for the next resume, and for whoever reads it."""
    values = config.model_dump(mode="json")
    if values != run.manifest["config"]:
        run.update(config=values, seed=config.seed)
    run.write_config_file(dump_config(config))


def _announce(config: ExperimentConfig, data: TokenDataset, trainer: Trainer, run: Run) -> None:
    sizes = {split: f"{facts['tokens']:,}" for split, facts in data.meta["splits"].items()}
    log.info(
        f"{run.name}: {trainer.model.num_parameters():,} parameters on {trainer.device.type} "
        f"({trainer.precision}{', compiled' if trainer.compiled else ''}"
        f"{f', {trainer.context.world_size} processes' if trainer.context.world_size > 1 else ''}); {data.meta['dataset']}: {sizes['train']} training and "
        f"{sizes['val']} validation tokens, vocabulary {data.tokenizer.vocab_size:,}"
    )


def _report(metrics: dict[str, float], trainer: Trainer, data: TokenDataset, run: Run) -> None:
    """What a user wants to know at the end: the result, a sample, where everything is, what next."""
    samples = next(c for c in trainer.callbacks if isinstance(c, Samples))
    for text in samples.latest:
        show(f"\n--- sample ---\n{text}")
    print("\n--- result ---")
    print(_describe(metrics, data.floor_bits_per_byte))
    print(f"experiment  {display_path(Path(run.manifest['file']))}")
    print(f"run folder  {display_path(run.directory)}  (config, manifest, checkpoints, samples)")
    project = run.manifest["project"]
    prompt = samples.config.prompts[0]
    print(f"next        python projects/{project}/sample.py --name {run.name} --prompt {prompt!r}")
    print(f"            python tools/query_experiments.py --compare {run.name} ANOTHER")


def _describe(metrics: dict[str, float], floor: float | None) -> str:
    text = (
        f"validation  loss {metrics['loss']:.4f} nats per token, "
        f"perplexity {metrics['perplexity']:.3f}, {metrics['bits_per_byte']:.4f} bits per byte "
        f"({int(metrics['num_tokens']):,} tokens)"
    )
    if floor is not None:
        above = metrics["bits_per_byte"] - floor
        text += f"\nfloor       {floor:.4f} bits per byte is the entropy of this text: {above:.4f} above"
    return text


def load_run(
    config: C, build_model: BuildModel[C], name: str, which: str
) -> tuple[BaseLanguageModel, TokenDataset, Path]:
    """The model of a run with the weights of checkpoint `which` (best, last or a step), and its data."""
    directory = folder_of(name) / "checkpoints"
    steps = steps_in(directory)
    if which == "best":
        path = best_checkpoint(directory)
    elif which == "last" and steps:
        path = directory / f"step_{steps[-1]}"
    elif which.isdecimal() and int(which) in steps:
        path = directory / f"step_{which}"
    else:
        choices = ["best", "last", *(str(step) for step in steps)]
        raise CheckpointError(f"no checkpoint '{which}'", did_you_mean(which, choices))
    data = prepare(config.data)
    # The order of the batches, which is part of it too, makes no difference from here on.
    if not data.fingerprint.items() <= load_checkpoint(path).state["fingerprint"].items():
        raise CheckpointError(
            f"'{name}' was trained on other data than data.* gives now",
            "restore the text it was prepared from, or train a new experiment",
        )
    model = _build(config, build_model, data)
    model.to(select_device(config.training.device))
    return model.load_checkpoint(path), data, path


def evaluate_run(
    config: C, build_model: BuildModel[C], name: str, which: str, split: str
) -> dict[str, float]:
    """Judge a checkpoint on a whole split and print the result."""
    model, data, path = load_run(config, build_model, name, which)
    evaluator = Evaluator(model, token_bytes=data.tokenizer.token_bytes)
    metrics = evaluator.evaluate(eval_windows(config, data, split))
    print(f"checkpoint  {display_path(path)}")
    floor = data.floor_bits_per_byte if split == "val" else None
    print(_describe(metrics, floor).replace("validation", f"{split:10}"))
    return metrics
