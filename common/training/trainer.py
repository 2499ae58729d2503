"""The training loop. Read `fit` first, then `_train_step`.

A run that is killed and resumed ends with the same weights, bit for bit (on CPU in fp32), because
no hidden state is carried between steps: batches and learning rates are functions of the step, and
everything else is in the checkpoint.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from common.data.batch import Batch, to_device
from common.data.prefetch import Prefetcher
from common.errors import CheckpointError, Interrupted, TrainingError
from common.experiments.conditions import diff_configs
from common.experiments.metrics import VAL_QUICK
from common.experiments.run import Run
from common.models.base import BaseModel
from common.models.checkpoint import Checkpoint, state_errors
from common.training.autotune import autotune
from common.training.callbacks.progress import ProgressBar
from common.training.checkpoints import (
    CheckpointWriter,
    delete_old_checkpoints,
    latest_checkpoint,
    mark_best,
    steps_in,
)
from common.training.config import OptimizerConfig, ScheduleConfig, TrainingConfig
from common.training.distributed import DistributedContext
from common.training.ema import WeightAverage
from common.training.evaluator import Evaluator
from common.training.experiment import Experiment
from common.training.optimizer_state import sharded_parameters
from common.training.optimizers import AdamWMuon, check_optimizer, create_optimizer
from common.training.parallel import TrainingModule, check_distributed, own_rows, strategy_of
from common.training.precision import (
    LossScaler,
    autocast,
    check_precision,
    matmul_precision,
    select_device,
    supported_precisions,
)
from common.training.schedules import learning_rate_factor
from common.training.sharded import gathered
from common.training.signals import stop_on_signals
from common.training.state import TrainState, Window
from common.utils.logging import get_logger
from common.utils.malloc import freed_memory_kept, freed_memory_returned
from common.utils.manifest import cpu_name

log = get_logger("training")


class Trainer:
    """Trains the model of `experiment`, evaluates it, and logs to `run`.

    The constructor validates and moves the model to its device; `fit` and `resume` resolve `auto`,
    distribute the model and create the optimizer (`set_up`).

    Args:
        schedule: None: a cosine with a warm-up of a tenth of the steps, at most 100.
        run: destination of rows, checkpoints and samples; None: nothing is written.
        context: distributed context from `join_context`; None: this process alone.
        share_auto: file through which several runs agree on what is `auto`; see autotune.py.
    Raises DataError if there is nothing to learn, TrainingError and ConfigError for options that
    this machine or model does not support.
    """

    def __init__(
        self,
        experiment: Experiment,
        config: TrainingConfig | None = None,
        *,
        optimizer: OptimizerConfig | None = None,
        schedule: ScheduleConfig | None = None,
        run: Run | None = None,
        context: DistributedContext | None = None,
        share_auto: Path | None = None,
    ) -> None:
        self.experiment = experiment
        self.objective = experiment.objective
        self.config = config or TrainingConfig()
        self.optimizer_config = optimizer or OptimizerConfig()
        short_warmup = ScheduleConfig(warmup_steps=min(100, self.config.max_steps // 10))
        self.schedule = schedule or short_warmup
        self.run = run
        self.callbacks = experiment.callbacks
        self.context = context or DistributedContext(device=select_device(self.config.device))
        self.device = self.context.device
        self.checkpoints = self.context.from_main(run.directory / "checkpoints" if run else None)
        self._share_auto = share_auto
        check_precision(self.config.precision, self.device)
        check_distributed(self.config, self.optimizer_config, self.context)
        check_activation_checkpointing(experiment.model, self.config)
        check_optimizer(experiment.model, self.optimizer_config)
        experiment.check()
        self.model = experiment.model.to(self.device)
        self.model.activation_checkpointing = self.config.activation_checkpointing

        is_quick = experiment.quick_val_data is not experiment.val_data
        self.quick_split = VAL_QUICK if is_quick else "val"
        self.should_stop = False  # callbacks may set it
        self.saved_step = 0  # step of the newest checkpoint
        self.changes: dict[str, list[Any]] = {}  # since the run was started, see Run.record_start
        self._is_set_up = False
        self._is_recorded = False
        self._evaluated: dict[tuple[int, str], dict[str, float]] = {}  # metrics by step and split
        self._writer = CheckpointWriter(self.config.save_in_background, self.context)

    def set_up(self, recorded: Mapping[str, Any] | None = None) -> None:
        """Resolve `auto`, distribute the model and create the optimizer; once, before the first step.

        `recorded`: the `numerics` of the run so far, which are kept.
        """
        if self._is_set_up:
            return
        self._is_set_up = True
        self.precision, self.compiled = self._settle_auto(recorded)
        strategy = strategy_of(self.config, self.context)
        self._module = TrainingModule(self.model, self.objective, strategy, self.context)
        self.model.set_compile(self.compiled)  # after sharding, which changes what is compiled
        self.context.seed_apart()
        muon_dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        self.optimizer: AdamWMuon = create_optimizer(self.model, self.optimizer_config, muon_dtype)
        decay = self.config.ema_decay
        self.average = WeightAverage(self.model, decay) if decay else None
        self.scaler = LossScaler(self.device) if self.precision == "fp16" else None
        self.evaluator = Evaluator(
            self.model,
            objective=self.objective,
            precision=self.precision,
            context=self.context,
        )
        # On the device, so that no step waits for it: the nats of the window, the last gradient
        # norm, and whether training has diverged (weights are then frozen).
        zero = torch.zeros((), device=self.device)
        self.state = TrainState(
            self.model,
            self.optimizer,
            self.average,
            self.scaler,
            self.callbacks,
            self.context,
            Window(zero.clone()),
        )
        self._learning_rate = 0.0  # of the last step, without optimizer.lr_factors
        self._gradient_norm, self._diverged = zero.clone(), zero.clone()

    def _settle_auto(self, recorded: Mapping[str, Any] | None) -> tuple[str, bool]:
        """Set precision and compilation: as recorded, else measured if `auto`; the same in every process."""
        precision, compile = self.config.precision, self.config.compile
        if recorded is not None:
            possible = recorded["precision"] in supported_precisions(self.device)
            precision = recorded["precision"] if precision == "auto" and possible else precision
            compile = recorded["compiled"] if compile == "auto" else compile
        self.model.train()
        choice = None
        if self.context.is_main:
            batch, _ = own_rows(self.experiment.batch(0), self.objective, self.context)
            passes = self.config.max_steps * self.config.gradient_accumulation_steps
            work = self.model, self.objective, to_device(batch, self.device)
            choice = autotune(*work, precision, compile, passes, self._share_auto)
        choice = self.context.from_main(choice)
        assert choice is not None
        return choice.precision, choice.compile

    @property
    def step(self) -> int:
        """Number of optimizer steps so far."""
        return self.state.step if self._is_set_up else 0

    @property
    def numerics(self) -> dict[str, Any]:
        """What determines the bits of a step besides configuration and data."""
        return {
            "precision": self.precision,
            "compiled": self.compiled,
            "processes": self.context.world_size,
            "device": self.device.type,
            "cpu": cpu_name(),
            "threads": torch.get_num_threads() if self.device.type == "cpu" else None,
            "torch": torch.__version__,
        }

    def fit(self) -> dict[str, float]:
        """Train up to `max_steps` and return the metrics of the final, full evaluation.

        Raises TrainingError if a loss or gradient is not finite (the weights are unchanged), and
        Interrupted on SIGINT or SIGTERM, after saving. A second Ctrl-C stops at once.
        """
        self.set_up()
        self._announce_short_warmup()
        self._show_progress()
        self.model.train()
        self._record_start()
        self._batches = Prefetcher(self.experiment.batch, self.device)
        short = self.config.activation_checkpointing
        memory = freed_memory_returned() if short else freed_memory_kept()
        try:
            for callback in self.callbacks:
                callback.on_train_start(self)
            with (
                stop_on_signals(self.context) as received,
                matmul_precision(self.precision),
                memory,
            ):
                while True:
                    if self._is_due(self.config.eval_every_steps):
                        self._evaluate(full=False)
                    if self.should_stop or self.step >= self.config.max_steps:
                        break
                    self._train_step()
                    for callback in self.callbacks:
                        callback.on_step(self)
                    if self.step % self.config.log_every_steps == 0:
                        self._log()
                    interrupted, self.should_stop = self.context.any(
                        bool(received), self.should_stop
                    )
                    if interrupted:
                        self._interrupt(received)
                    if self._is_checkpoint_due():
                        self.save()
                self._save_once()
                metrics = self._evaluate(full=True)
                self._evaluate_others()
                self._writer.wait()
                if self.context.any(bool(received))[0]:
                    self._interrupt(received)
            return metrics
        finally:
            self._batches.close()
            self._writer.close()
            for callback in self.callbacks:
                callback.on_train_end(self)

    def _announce_short_warmup(self) -> None:
        """Warn if the warm-up is longer than the run."""
        warmup, steps = self.schedule.warmup_steps, self.config.max_steps
        if warmup > steps:
            log.warning(
                f"schedule.warmup_steps={warmup} does not end within training.max_steps={steps}: "
                f"the learning rate reaches only {steps / warmup:.0%} of optimizer.lr"
            )

    def _show_progress(self) -> None:
        """Print on a terminal if no callback does."""
        is_shown = any(isinstance(callback, ProgressBar) for callback in self.callbacks)
        if self.context.is_main and sys.stderr.isatty() and not is_shown:
            self.callbacks.insert(0, ProgressBar())

    @property
    def evaluates_now(self) -> bool:
        """Whether an evaluation follows this step."""
        is_last = self.step >= self.config.max_steps
        return self.experiment.quick_val_data is not None and (
            is_last or self._is_due(self.config.eval_every_steps)
        )

    def _record_start(self) -> None:
        """Record the start, once: on a resume, or when training begins."""
        if self.run is not None and not self._is_recorded:
            self.run.record_start(self.step, self.changes, **self.numerics)
        self._is_recorded = True

    def _is_due(self, every_steps: int | None) -> bool:
        if not every_steps or not 0 < self.step < self.config.max_steps:
            return False
        return self.step % every_steps == 0

    def _is_checkpoint_due(self) -> bool:
        # Save before each evaluation: a kill during a long one then loses no steps.
        return self._is_due(self.config.checkpoint_every_steps) or self._is_due(
            self.config.eval_every_steps
        )

    def _train_step(self) -> None:
        """Run one optimizer step over `gradient_accumulation_steps` batches, weighted by their targets."""
        started = time.perf_counter()
        accumulation = self.config.gradient_accumulation_steps
        first = self.step * accumulation
        batches = [self._batches.batch(first + i) for i in range(accumulation)]
        counts = [self.objective.count(batch) for batch in batches]
        targets = sum(counts)
        parts = [(batch, n) for batch, n in zip(batches, counts, strict=True) if n]
        window = self.state.window
        for left, (batch, count) in zip(reversed(range(len(parts))), parts, strict=True):
            with self._module.without_reduction(left > 0):
                window.nats += self._backward(batch, count, count / targets) * targets
        self._update_weights()
        self.state.step += 1
        if self.average is not None:
            self.average.update(self.step)
        units = sum(self.objective.size(batch) for batch in batches)
        self.state.units += units
        window.targets += targets
        window.units += units
        window.seconds += time.perf_counter() - started

    def _backward(self, batch: Batch, count: int, weight: float) -> torch.Tensor:
        """Add the gradient of `weight` x the mean loss of the batch; return this process's part of it."""
        mine, own_count = own_rows(batch, self.objective, self.context)
        # The mean over this process's targets, as a part of the mean over all `count`.
        share = weight if own_count == count else weight * (own_count / count)
        with autocast(self.precision, self.device):
            loss: torch.Tensor = self._module(to_device(mine, self.device))
        part = loss * share if share != 1.0 else loss
        # Gradients are averaged over processes, and each has only a part of the batch.
        scaled = part * self.context.world_size if self.context.world_size > 1 else part
        (scaled * self.scaler.scale if self.scaler else scaled).backward()  # type: ignore[no-untyped-call]
        return part.detach()

    def _update_weights(self) -> None:
        """Clip the global gradient norm and step, unless it is not finite.

        With fp16 an overflow skips the step: the schedule and the data advance, but weights and
        optimizer state do not change.
        """
        factor = learning_rate_factor(self.step, self.config.max_steps, self.schedule)
        self.optimizer.set_learning_rate_factor(factor)
        self._learning_rate = self.optimizer_config.lr * factor
        for callback in self.callbacks:
            callback.on_gradients(self)
        gradients = [p.grad for p in self.optimizer.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients) if gradients else self._gradient_norm * 0
        if hasattr(norm, "full_tensor"):  # sharded gradients
            norm = norm.full_tensor()
        divisor = self.scaler.scale if self.scaler else torch.ones_like(norm)
        norm = norm / divisor
        if self.config.max_grad_norm is not None:
            divisor = divisor * (norm / self.config.max_grad_norm).clamp(min=1.0)
        overflow = (~torch.isfinite(norm)).to(self._diverged.dtype)
        diverged = self.scaler.update(overflow) if self.scaler else overflow
        # Once diverged, keep the norm of the step at which it happened.
        self._gradient_norm = torch.where(self._diverged > 0, self._gradient_norm, norm)
        self._diverged = torch.maximum(self._diverged, diverged)
        skip: torch.Tensor | None = torch.maximum(self._diverged, overflow)
        if self.device.type == "cpu":
            self._check_finite(self.step + 1)  # free on this device
            skip = overflow if self.scaler else None
        self.optimizer.step(divisor=divisor, skip=skip)
        self.optimizer.zero_grad()
        self.model.end_step(self.context.sum)

    def _check_finite(self, step: int) -> None:
        """Raise TrainingError if the loss of a step is not finite, or its gradient at every scale."""
        nats = float(self.context.sum(self.state.window.nats.clone()))
        if math.isfinite(nats) and not self._diverged:
            return
        what = f"the gradient norm is {float(self._gradient_norm)}"
        if not math.isfinite(nats):
            what = f"the loss is {nats}"
        elif self.scaler:
            what += f" at every loss scale down to {self.scaler.min_scale:g}"
        steps = steps_in(self.checkpoints) if self.checkpoints else []
        last = f"{self.checkpoints}/step_{steps[-1]}" if steps else "none saved yet"
        raise TrainingError(
            f"{what} at step {step} (learning rate {self._learning_rate:.2e}); it changed no weight",
            f"lower optimizer.lr or raise schedule.warmup_steps. Last good checkpoint: {last}",
        )

    def _log(self) -> None:
        waited = time.perf_counter()
        self._check_finite(self.step)
        window = self.state.window
        self.state.window = Window(torch.zeros_like(window.nats))
        nats = float(self.context.sum(window.nats))
        if not window.targets:
            log.warning(f"nothing was trained up to step {self.step}: no batch had a label")
            return
        seconds = window.seconds + time.perf_counter() - waited
        metrics = {
            **self.objective.loss_metrics(nats / window.targets),
            "learning_rate": self._learning_rate,
            "gradient_norm": float(self._gradient_norm),
            f"{self.objective.unit}_per_second": window.units / seconds,
        }
        if self.scaler is not None:
            metrics["loss_scale"] = float(self.scaler.scale)
            if not math.isfinite(metrics["gradient_norm"]):
                del metrics["gradient_norm"]  # this step was skipped, and has none
        metrics |= self.model.training_metrics()
        for callback in self.callbacks:
            metrics |= callback.measure(self, metrics)
        self._write_row(metrics, "train")
        for callback in self.callbacks:
            callback.on_log(self, metrics)

    def _write_row(self, metrics: Mapping[str, float], split: str) -> None:
        if self.run is not None:
            self.run.log(metrics, step=self.step, split=split, epoch=self._epochs())

    def _epochs(self) -> float | None:
        """Number of passes over the training split; None if its size is unknown."""
        if (epochs := getattr(self.experiment.train_data, "epochs", None)) is not None:
            return float(epochs(self.step * self.config.gradient_accumulation_steps))
        size = self.experiment.units_per_epoch
        return self.state.units / size if size else None

    def _evaluate(self, full: bool) -> dict[str, float]:
        """Evaluate `quick_val_data`, and with `full` also `val_data`, each split once per step.

        Returns the metrics of `val`, empty if it was not evaluated at this step.
        """
        sets = {self.quick_split: self.experiment.quick_val_data}
        if full:
            sets["val"] = self.experiment.val_data
        with self._averaged_weights():
            for split, data in sets.items():
                if data is not None and (self.step, split) not in self._evaluated:
                    self._evaluated[self.step, split] = self._evaluate_split(split, data)
        return self._evaluated.get((self.step, "val"), {})

    def _evaluate_split(self, split: str, data: Iterable[Any]) -> dict[str, float]:
        metrics = self.evaluator.evaluate(data)
        if split == self.quick_split:  # the same batches at every step
            self._mark_if_best(metrics["loss"])
        with gathered(self.model):
            for callback in self.callbacks:
                callback.on_evaluate(self, metrics, split)
        (self.should_stop,) = self.context.any(self.should_stop)
        self._write_row(metrics, split)
        return metrics

    def _evaluate_others(self) -> None:
        with self._averaged_weights():
            for name, other in self.experiment.other_val_data.items():
                self._write_row(self.evaluator.evaluate(other), name)

    def _averaged_weights(self) -> AbstractContextManager[None]:
        return self.average.applied() if self.average else nullcontext()

    def _mark_if_best(self, loss: float) -> None:
        """Mark this step as the best if its `loss` on `quick_val_data` is the lowest."""
        state = self.state
        if not loss < state.best_loss:
            return
        state.best_loss = loss
        if self.checkpoints and self.saved_step == self.step and self.context.is_main:
            self._writer.wait()
            state.best_step = self.step
            mark_best(self.checkpoints, self.step, loss)

    def save(self) -> None:
        """Write a training checkpoint; a failure (a full disk) leaves earlier ones intact."""
        if self.checkpoints is None:
            return
        self._check_finite(self.step)  # never save weights that fail every resume
        if self.run is not None:
            self.run.flush()  # the checkpoint records the rows up to here
        state, weights, tensors = self.state.state()
        state |= {
            "log_rows": self.run.rows if self.run else 0,
            "fingerprint": self.experiment.fingerprint,
            "training": self.numerics,
        }
        path = self.checkpoints / f"step_{self.step}"
        keep = self.config.keep_checkpoints
        self._writer.write(self.model, path, weights, state, tensors, keep=keep)
        self.saved_step = self.step
        if self.run is not None and self.objective.unit == "tokens":
            self.run.update(tokens=self.state.units)

    def resume(self, anyway: bool = False, changes: Mapping[str, list[Any]] | None = None) -> None:
        """Continue from the newest intact checkpoint of the run, or from the beginning without one.

        `changes` of the configuration since then, {key: [before, now]}, are recorded with the run.

        Raises CheckpointError if it was trained on other data (with `anyway` a warning), or does
        not fit the model.
        """
        if self.checkpoints is None:
            raise TrainingError("only a run with a folder can be resumed")
        saved = latest_checkpoint(self.checkpoints, self.device, self.context)
        if saved is None:
            log.info("no checkpoint was saved: starting from the beginning")
            self.set_up()
        else:
            self.changes = dict(changes or {})
            self._load(saved, anyway)
        if self.run is not None:
            self.run.resume_from(saved.state["log_rows"] if saved else 0)
            mark_best(self.checkpoints, self.state.best_step, self.state.best_loss)
            if saved:  # a kill may have come in between
                keep = self.config.keep_checkpoints
                delete_old_checkpoints(self.checkpoints, self.step, keep)
            self._record_start()
        log.info("resumed", extra={"step": self.step})

    def extend(self, checkpoints: Path, changes: Mapping[str, list[Any]]) -> None:
        """Continue, as a new run, from the newest intact checkpoint in the folder `checkpoints`.

        `changes` of the configuration since then are recorded. A checkpoint of this run is written
        at once, so that it can be resumed by itself. Raises CheckpointError if there is no
        checkpoint, or it was trained on other data.
        """
        saved = latest_checkpoint(checkpoints, self.device, self.context)
        if saved is None:
            raise CheckpointError(f"no checkpoint to continue from in {checkpoints}")
        self.changes = dict(changes)
        self._load(saved, anyway=False)
        self.state.best_loss, self.state.best_step, self.saved_step = math.inf, None, 0
        self._is_recorded = False
        self._record_start()
        self.save()
        log.info("extended", extra={"step": self.step})

    def _load(self, saved: Checkpoint, anyway: bool) -> None:
        """Restore the trainer from `saved`, and log what cannot be the same."""
        with state_errors(saved.path):
            self._check_fingerprint(saved, anyway)
            recorded = saved.state["training"]
            self._take_threads(recorded)
            self.set_up(recorded)
            parts = sharded_parameters(self.model, self.optimizer)
            self.state.load_state(replace(saved, parts=parts))
        self.saved_step = self.step
        for name, now in self.numerics.items():
            if now != recorded.get(name, now):  # not recorded by earlier versions
                log.warning(
                    f"{name} was {recorded[name]} and is {now}: "
                    "the results will be close, but not bitwise equal"
                )

    def _take_threads(self, recorded: Mapping[str, Any]) -> None:
        """Set the recorded number of CPU threads, unless the user sets one or the CPU differs."""
        if self.config.num_threads is not None or "OMP_NUM_THREADS" in os.environ:
            return
        threads = recorded.get("threads") if self.device.type == "cpu" else None
        if threads not in (None, torch.get_num_threads()) and recorded.get("cpu") == cpu_name():
            torch.set_num_threads(threads)
            log.info(f"using {threads} CPU threads as before; change it with training.num_threads")

    def _check_fingerprint(self, saved: Checkpoint, anyway: bool) -> None:
        then, now = saved.state["fingerprint"], self.experiment.fingerprint
        # Earlier versions did not record data.more_validation; the order of batches matters.
        now = {key: value for key, value in now.items() if key in then or key[:5] != "text "}
        different = diff_configs([then, now])
        if not different:
            return
        changes = "; ".join(f"{key}: {was} -> {now}" for key, (was, now) in different.items())
        if not anyway:
            raise CheckpointError(
                f"{saved.path} was trained on different data than data.* now gives ({changes})",
                "restore the text it was prepared from, start a new experiment, or --resume-anyway",
            )
        log.warning(f"resuming on different data: {changes}")
        self.changes |= {f"data {key}": values for key, values in different.items()}

    def _save_once(self) -> None:
        if self.saved_step != self.step:
            self.save()

    def _interrupt(self, received: list[int]) -> None:
        self._save_once()
        self._writer.wait()
        name = self.run.name if self.run else ""
        how = f"; continue with --name {name} --resume" if self.run else ""
        raise Interrupted(
            f"interrupted at step {self.step}, everything is saved{how}",
            received[0] if received else signal.SIGTERM,  # if another process received it
        )


def check_activation_checkpointing(model: BaseModel, config: TrainingConfig) -> None:
    """Raise TrainingError if it is enabled and the model does not support it."""
    if config.activation_checkpointing and not model.supports_activation_checkpointing:
        raise TrainingError(
            f"{type(model).__name__} has no activation checkpointing",
            "set training.activation_checkpointing=false",
        )
