"""The training loop. Read `fit` first, then `_train_step`.

A run that is killed and resumed ends with the same weights, bit for bit (on CPU in fp32), because
nothing hidden is carried from step to step: batches and learning rates are functions of the step,
and everything else is in the checkpoint.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from common.data.batch import (
    Batch,
    BatchSource,
    batch_source,
    check_labels,
    check_validation,
    count_labels,
    to_batch,
)
from common.data.prefetch import Prefetcher
from common.errors import CheckpointError, Interrupted, TrainingError
from common.experiments.metrics import VAL_QUICK
from common.experiments.run import Run
from common.models.base import BaseLanguageModel
from common.models.checkpoint import state_errors
from common.training.callbacks.base import Callback
from common.training.checkpoints import (
    CheckpointWriter,
    delete_old_checkpoints,
    latest_checkpoint,
    mark_best,
    steps_in,
)
from common.training.config import OptimizerConfig, ScheduleConfig, TrainingConfig
from common.training.distributed import (
    DistributedContext,
    TrainingModule,
    check_distributed,
    strategy_of,
)
from common.training.ema import WeightAverage
from common.training.evaluator import Evaluator
from common.training.optimizer_state import sharded_parameters
from common.training.optimizers import AdamWMuon, create_optimizer
from common.training.precision import (
    LossScaler,
    autocast,
    check_precision,
    matmul_precision,
    select_device,
)
from common.training.probe import choose
from common.training.schedules import learning_rate_factor
from common.training.sharded import gathered
from common.training.signals import stop_on_signals
from common.training.training_state import numerics, pack_state, unpack_state
from common.utils.logging import get_logger
from common.utils.malloc import freed_memory_kept

log = get_logger("training")


class Trainer:
    """Trains `model` on `train_data`, judges it on `val_data`, logs to `run`.

    Args:
        train_data: gives the batch of any index (see data/loader.py), the same in every process;
            or a DataLoader or a list of batches, which are gone through again and again.
        val_data: batches of one pass over the validation split; None: no evaluation. What a batch
            may be says `to_batch` (data/batch.py).
        quick_val_data: a part of it, evaluated on the way and at the end, which finds the best
            checkpoint and stops early. Logged as the split `val_quick`, so that no loss of few batches
            passes for one of the whole split; `val` is then logged once, at the end. None: all of
            `val_data`, logged as `val` each time.
        other_val_data: more validation sets by name; judged at the end, logged as splits.
        run: where rows, checkpoints and samples go; None: nothing is written.
        token_bytes: as Evaluator takes it.
        tokens_per_epoch: size of the training split, for the `epoch` of logged rows where
            `train_data` has no epochs of its own.
        fingerprint: identifies the data (JSON), besides what `train_data` says of itself; a resume
            on other data is refused.
        context: of the processes that train together, from `join_context`; None: this process alone.
        share_auto: a file through which several runs agree on what is `auto`; see probe.choose.
    """

    def __init__(
        self,
        model: BaseLanguageModel,
        train_data: BatchSource | DataLoader[Any] | Sequence[Any],
        config: TrainingConfig | None = None,
        *,
        optimizer: OptimizerConfig | None = None,
        schedule: ScheduleConfig | None = None,
        val_data: Iterable[Any] | None = None,
        quick_val_data: Iterable[Any] | None = None,
        other_val_data: Mapping[str, Iterable[Any]] | None = None,
        run: Run | None = None,
        callbacks: Sequence[Callback] = (),
        token_bytes: Any = None,
        tokens_per_epoch: int | None = None,
        fingerprint: Mapping[str, Any] | None = None,
        context: DistributedContext | None = None,
        share_auto: Path | None = None,
    ) -> None:
        self.config = config or TrainingConfig()
        self.context = context or DistributedContext(device=select_device(self.config.device))
        self._share_auto = share_auto
        self.device = self.context.device
        check_precision(self.config.precision, self.device)
        self.model = model.to(self.device)
        check_activation_checkpointing(self.model, self.config)
        self.model.activation_checkpointing = self.config.activation_checkpointing
        self.optimizer_config = optimizer or OptimizerConfig()
        check_distributed(self.config, self.optimizer_config, self.context)
        self.schedule = schedule or ScheduleConfig()
        self.train_data, self.val_data = batch_source(train_data), val_data
        self.quick_val_data = quick_val_data if quick_val_data is not None else val_data
        self.quick_split = "val" if quick_val_data is None else VAL_QUICK
        self.other_val_data = dict(other_val_data or {})
        self.run, self.callbacks = run, list(callbacks)
        self.tokens_per_epoch = tokens_per_epoch
        order = getattr(self.train_data, "fingerprint", {})
        self.fingerprint = {**order, **(fingerprint or {})}
        self.checkpoints = self.context.from_main(run.directory / "checkpoints" if run else None)

        self.step = 0  # optimizer steps done
        self.tokens = 0  # input tokens seen
        self.should_stop = False  # callbacks may set it
        self.best_loss = math.inf
        self.best_step: int | None = None  # whose checkpoint has it
        self.saved_step = 0  # of the newest checkpoint
        self.changes: dict[str, list[Any]] = {}  # since the run was started, see Run.record_start
        self._is_recorded = False
        self.window = {"labels": 0, "tokens": 0, "seconds": 0.0}  # since the last log
        self._evaluated: dict[tuple[int, str], dict[str, float]] = {}  # metrics by step and split

        self._check_data()
        self.precision, self.compiled = self._settle_auto()
        strategy = strategy_of(self.config, self.context)
        self._module = TrainingModule(self.model, strategy, self.context)
        self.model.set_compile(self.compiled)  # only now: sharding changes what is to be compiled
        self.context.seed_apart()
        self.optimizer = self.create_optimizer()
        self.average = (
            WeightAverage(self.model, self.config.ema_decay) if self.config.ema_decay else None
        )
        self.scaler = self.create_scaler()
        self.evaluator = Evaluator(
            self.model,
            token_bytes=token_bytes,
            precision=self.precision,
            context=self.context,
        )
        self._writer = CheckpointWriter(self.config.save_in_background, self.context)
        # On the device, so that no step waits for it: the nats of the window, the last gradient
        # norm, and whether training has diverged (then no weight is changed any more).
        self.nats = torch.zeros((), device=self.device)
        self._learning_rate = 0.0  # of the last step, without optimizer.lr_factors
        self._gradient_norm = torch.zeros((), device=self.device)
        self._diverged = torch.zeros((), device=self.device)

    def create_optimizer(self) -> AdamWMuon:
        muon_dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        return create_optimizer(self.model, self.optimizer_config, muon_dtype)

    def create_scaler(self) -> LossScaler | None:
        return LossScaler(self.device) if self.precision == "fp16" else None

    def _check_data(self) -> None:
        check_labels(self.train_data)
        named = {"val_data": self.val_data, "quick_val_data": self.quick_val_data}
        for name, data in {**named, **self.other_val_data}.items():
            if data is not None:
                check_validation(name, data, self.model.vocab_size)

    def _settle_auto(self) -> tuple[str, bool]:
        """Precision and compilation, measured where they are `auto`; the same in every process."""
        self.model.train()
        passes = self.config.max_steps * self.config.gradient_accumulation_steps
        choice = None
        if self.context.is_main:
            batch = self.context.rows(to_batch(self.train_data.batch(0), self.model.vocab_size))
            batch = {name: tensor.to(self.device) for name, tensor in batch.items()}
            asked = self.config.precision, self.config.compile
            choice = choose(self.model, batch, *asked, passes, self._share_auto)
        choice = self.context.from_main(choice)
        assert choice is not None
        return choice.precision, choice.compile

    def fit(self) -> dict[str, float]:
        """Train up to `max_steps` and return the metrics of the final, full evaluation.

        Raises TrainingError when a loss or gradient is not finite (the weights stay as they were),
        and Interrupted on SIGINT or SIGTERM, after saving. A second Ctrl-C stops at once.
        """
        self._announce_short_warmup()
        self.model.train()
        self._record_start()
        self._batches = Prefetcher(self.train_data, self.device, vocab_size=self.model.vocab_size)
        try:
            for callback in self.callbacks:
                callback.on_train_start(self)
            with (
                stop_on_signals(self.context) as received,
                matmul_precision(self.precision),
                freed_memory_kept(),
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
        """Say how far the learning rate gets where the warm-up is longer than the run."""
        warmup, steps = self.schedule.warmup_steps, self.config.max_steps
        if warmup > steps:
            log.warning(
                f"schedule.warmup_steps={warmup} does not end within training.max_steps={steps}: "
                f"the learning rate gets no higher than {steps / warmup:.0%} of optimizer.lr"
            )

    @property
    def evaluates_now(self) -> bool:
        """Whether an evaluation follows this step."""
        is_last = self.step >= self.config.max_steps
        return self.quick_val_data is not None and (
            is_last or self._is_due(self.config.eval_every_steps)
        )

    def _record_start(self) -> None:
        """Once: when training is resumed, or else when it begins."""
        if self.run is not None and not self._is_recorded:
            self.run.record_start(self.step, self.changes, **numerics(self))
        self._is_recorded = True

    def _is_due(self, every_steps: int | None) -> bool:
        if not every_steps or not 0 < self.step < self.config.max_steps:
            return False
        return self.step % every_steps == 0

    def _is_checkpoint_due(self) -> bool:
        # Saved before each evaluation, so that a long one can be lost but not the steps before it.
        return self._is_due(self.config.checkpoint_every_steps) or self._is_due(
            self.config.eval_every_steps
        )

    def _train_step(self) -> None:
        """One optimizer step over `gradient_accumulation_steps` batches, each weighted by its labels."""
        started = time.perf_counter()
        accumulation = self.config.gradient_accumulation_steps
        first = self.step * accumulation
        batches = [self._batches.batch(first + i) for i in range(accumulation)]
        counts = [count_labels(batch["labels"]) for batch in batches]
        labels = sum(counts)
        parts = [(batch, n) for batch, n in zip(batches, counts, strict=True) if n]
        for left, (batch, count) in zip(reversed(range(len(parts))), parts, strict=True):
            with self._module.without_reduction(left > 0):
                self.nats += self._backward(batch, count / labels) * labels
        self._update_weights()
        self.step += 1
        if self.average is not None:
            self.average.update(self.step)
        tokens = sum(batch["input_ids"].numel() for batch in batches)
        self.tokens += tokens
        self.window["labels"] += labels
        self.window["tokens"] += tokens
        self.window["seconds"] += time.perf_counter() - started

    def _backward(self, batch: Batch, weight: float) -> torch.Tensor:
        """Add the gradient of `weight` x the mean loss of the batch; returns this process's part of it."""
        mine = self.context.rows(batch)
        # The mean over this process's labels, as a part of the mean over all.
        share = weight
        if self.context.world_size > 1:
            share *= count_labels(mine["labels"]) / count_labels(batch["labels"])
        with autocast(self.precision, self.device):
            loss = self._module(
                mine["input_ids"].to(self.device, non_blocking=True),
                mine["labels"].to(self.device, non_blocking=True),
            )
        part: torch.Tensor = loss * share if share != 1.0 else loss
        # Gradients are averaged over the processes, and each has but a part of the batch.
        scaled = part * self.context.world_size if self.context.world_size > 1 else part
        (scaled * self.scaler.scale if self.scaler else scaled).backward()  # type: ignore[no-untyped-call]
        return part.detach()

    def _update_weights(self) -> None:
        """Clip the global gradient norm and step, unless something is not finite.

        With fp16 an overflow skips the step: it counts as a step of the schedule and of the data,
        but changes neither weights nor the optimizer's state.
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
        # Once diverged, the norm stays that of the step at which it happened.
        self._gradient_norm = torch.where(self._diverged > 0, self._gradient_norm, norm)
        self._diverged = torch.maximum(self._diverged, diverged)
        skip: torch.Tensor | None = torch.maximum(self._diverged, overflow)
        if self.device.type == "cpu":
            self._check_finite(self.step + 1)  # a look costs nothing here
            skip = overflow if self.scaler else None
        self.optimizer.step(divisor=divisor, skip=skip)
        self.optimizer.zero_grad()

    def _check_finite(self, step: int) -> None:
        """Raise TrainingError when the loss of a step was not finite, or its gradient at any scale."""
        nats = float(self.context.sum(self.nats.clone()))
        if math.isfinite(nats) and not self._diverged:
            return
        what = f"the gradient norm is {float(self._gradient_norm)}"
        if not math.isfinite(nats):
            what = f"the loss is {nats}"
        elif self.scaler:
            what += f" at every loss scale down to {self.scaler.min_scale:g}"
        steps = steps_in(self.checkpoints) if self.checkpoints else []
        last = f"{self.checkpoints}/step_{steps[-1]}" if steps else "none was saved yet"
        raise TrainingError(
            f"{what} at step {step} (learning rate {self._learning_rate:.2e}); it changed no weight",
            f"lower optimizer.lr or raise schedule.warmup_steps. Last good checkpoint: {last}",
        )

    def _log(self) -> None:
        waited = time.perf_counter()
        self._check_finite(self.step)
        nats = float(self.context.sum(self.nats))
        window, self.window = self.window, dict.fromkeys(self.window, 0)
        self.nats = torch.zeros_like(self.nats)
        if not window["labels"]:
            log.warning(f"nothing was trained up to step {self.step}: no token had a label")
            return
        loss = nats / window["labels"]
        seconds = window["seconds"] + time.perf_counter() - waited
        metrics = {
            "loss": loss,
            "perplexity": math.exp(min(loss, 700)),
            "learning_rate": self._learning_rate,
            "gradient_norm": float(self._gradient_norm),
            "tokens_per_second": window["tokens"] / seconds,
        }
        if self.scaler is not None:
            metrics["loss_scale"] = float(self.scaler.scale)
            if not math.isfinite(metrics["gradient_norm"]):
                del metrics["gradient_norm"]  # this step was skipped, and has none
        for callback in self.callbacks:
            metrics |= callback.measure(self, metrics)
        self._write_row(metrics, "train")
        for callback in self.callbacks:
            callback.on_log(self, metrics)

    def _write_row(self, metrics: Mapping[str, float], split: str) -> None:
        if self.run is not None:
            self.run.log(metrics, step=self.step, split=split, epoch=self._epochs())

    def _epochs(self) -> float | None:
        """How often the training split was gone through; None where nobody knows its size."""
        if (epochs := getattr(self.train_data, "epochs", None)) is not None:
            return float(epochs(self.step * self.config.gradient_accumulation_steps))
        return self.tokens / self.tokens_per_epoch if self.tokens_per_epoch else None

    def _evaluate(self, full: bool) -> dict[str, float]:
        """Evaluate `quick_val_data`, then with `full` `val_data`, each split once per step.

        Returns the metrics of `val`, empty where it was not evaluated at this step.
        """
        sets = {self.quick_split: self.quick_val_data} | ({"val": self.val_data} if full else {})
        with self.average.applied() if self.average else nullcontext():
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
        with self.average.applied() if self.average else nullcontext():
            for name, other in self.other_val_data.items():
                self._write_row(self.evaluator.evaluate(other), name)

    def _mark_if_best(self, loss: float) -> None:
        """`loss`: of `quick_val_data`, now."""
        if not loss < self.best_loss:
            return
        self.best_loss = loss
        if self.checkpoints and self.saved_step == self.step and self.context.is_main:
            self._writer.wait()
            self.best_step = self.step
            mark_best(self.checkpoints, self.step, self.best_loss)

    def save(self) -> None:
        """Write a training checkpoint; a failure (a full disk) leaves the earlier ones as they are."""
        if self.checkpoints is None:
            return
        self._check_finite(self.step)  # no checkpoint holds what every resume would die of
        if self.run is not None:
            self.run.flush()  # the checkpoint counts the rows up to here
        state, weights, tensors = pack_state(self)
        path = self.checkpoints / f"step_{self.step}"
        keep = self.config.keep_checkpoints
        self._writer.write(self.model, path, weights, state, tensors, keep=keep)
        self.saved_step = self.step
        if self.run is not None:
            self.run.update(tokens=self.tokens)

    def resume(self, anyway: bool = False, changes: Mapping[str, list[Any]] | None = None) -> None:
        """Continue from the newest whole checkpoint of the run, or from the beginning without one.

        `changes` of the configuration since then, {key: [before, now]}, are recorded with the run.

        Raises CheckpointError when it was trained on other data (`anyway`: says so and goes on), or
        does not fit the model.
        """
        if self.checkpoints is None:
            raise TrainingError("only a run with a folder can be resumed")
        known = sharded_parameters(self.model, self.optimizer)
        saved = latest_checkpoint(self.checkpoints, self.device, self.context, known)
        if saved is None:
            log.info("no checkpoint was saved: starting from the beginning")
        else:
            self.changes = dict(changes or {})
            with state_errors(saved.path):
                unpack_state(self, saved, anyway)
        if self.run is not None:
            self.run.resume_from(saved.state["log_rows"] if saved else 0)
            mark_best(self.checkpoints, self.best_step, self.best_loss)
            if saved:  # a kill may have come between a save and this
                keep = self.config.keep_checkpoints
                delete_old_checkpoints(self.checkpoints, self.step, keep)
            self._record_start()
        log.info("resumed", extra={"step": self.step})

    def extend(self, checkpoints: Path, changes: Mapping[str, list[Any]]) -> None:
        """Continue, as another run, from the newest whole checkpoint of the run that `checkpoints` is of.

        `changes` of the configuration since then are recorded. A checkpoint of this run is written at
        once, so that it can be resumed by itself. Raises CheckpointError where there is no checkpoint,
        or it was trained on other data.
        """
        known = sharded_parameters(self.model, self.optimizer)
        saved = latest_checkpoint(checkpoints, self.device, self.context, known)
        if saved is None:
            raise CheckpointError(f"there is no checkpoint in {checkpoints} to go on from")
        self.changes = dict(changes)
        unpack_state(self, saved, anyway=False)
        self.best_loss, self.best_step, self.saved_step = math.inf, None, 0  # of this run
        self._is_recorded = False
        self._record_start()
        self.save()
        log.info("extended", extra={"step": self.step})

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
            received[0] if received else signal.SIGTERM,  # another process received it
        )


def check_activation_checkpointing(model: BaseLanguageModel, config: TrainingConfig) -> None:
    if config.activation_checkpointing and not model.supports_activation_checkpointing:
        raise TrainingError(
            f"{type(model).__name__} has no activation checkpointing",
            "set training.activation_checkpointing=false",
        )
