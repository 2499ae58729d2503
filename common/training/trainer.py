"""The training loop. Read `fit` first, then `_train_step`.

A run that is killed and resumed ends with the same weights, bit for bit (on CPU in fp32), because
nothing hidden is carried from step to step: batches and learning rates are functions of the step,
and everything else is in the checkpoint.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from common.data.loader import Batch, BatchSource
from common.errors import CheckpointError, Interrupted, TrainingError
from common.models.base import BaseLanguageModel
from common.models.loss import count_labels
from common.training import checkpoint
from common.training.callbacks.base import Callback
from common.training.config import OptimizerConfig, ScheduleConfig, TrainingConfig
from common.training.evaluator import Evaluator
from common.training.optimizers import create_optimizer
from common.training.precision import autocast, select_device, select_precision
from common.training.schedules import learning_rate
from common.utils.experiment_storage.run import Run
from common.utils.logging import get_logger
from common.utils.seeding import get_rng_state, set_rng_state


class Trainer:
    """Trains `model` on `train_data`, judges it on `val_data`, logs to `run`.

    Args:
        train_data: gives the batch of any index (see data/loader.py).
        val_data: batches of one pass over the validation split; None: no evaluation.
        quick_val_data: a part of it for the evaluations on the way; None: all of it.
        run: where rows, checkpoints and samples go; None: nothing is written.
        token_bytes: as Evaluator takes it.
        tokens_per_epoch: size of the training split, for the `epoch` of logged rows.
        fingerprint: identifies the data (JSON); a resume on other data is refused.
    """

    def __init__(
        self,
        model: BaseLanguageModel,
        train_data: BatchSource,
        config: TrainingConfig | None = None,
        *,
        optimizer: OptimizerConfig | None = None,
        schedule: ScheduleConfig | None = None,
        val_data: Iterable[Batch] | None = None,
        quick_val_data: Iterable[Batch] | None = None,
        run: Run | None = None,
        callbacks: Sequence[Callback] = (),
        token_bytes: Any = None,
        tokens_per_epoch: int | None = None,
        fingerprint: Mapping[str, Any] | None = None,
    ) -> None:
        self.config = config or TrainingConfig()
        self.device = select_device(self.config.device)
        self.precision = select_precision(self.config.precision, self.device)
        self.model = model.to(self.device)
        self.optimizer_config = optimizer or OptimizerConfig()
        self.schedule = schedule or ScheduleConfig()
        self.optimizer = create_optimizer(model, self.optimizer_config)
        self.evaluator = Evaluator(model, token_bytes=token_bytes, precision=self.precision)
        self.train_data, self.val_data = train_data, val_data
        self.quick_val_data = quick_val_data if quick_val_data is not None else val_data
        self.run, self.callbacks = run, list(callbacks)
        self.tokens_per_epoch = tokens_per_epoch
        self.fingerprint = dict(fingerprint or {})
        self.checkpoints = run.directory / "checkpoints" if run else None

        self.step = 0  # optimizer steps done
        self.tokens = 0  # input tokens seen
        self.should_stop = False  # callbacks may set it
        self.best_loss = math.inf
        self._saved_step = 0  # of the newest checkpoint
        self._window = {"loss": 0.0, "labels": 0, "tokens": 0, "seconds": 0.0}  # since the last log
        self._full_evaluation: tuple[int, dict[str, float]] | None = None

    def fit(self) -> dict[str, float]:
        """Train up to `max_steps` and return the metrics of the final, full evaluation.

        Raises TrainingError when a loss or gradient is not finite (the weights stay as they were),
        and Interrupted on SIGINT or SIGTERM, after saving. A second Ctrl-C stops at once.
        """
        self.model.train()
        try:
            for callback in self.callbacks:
                callback.on_train_start(self)
            with _stop_on_signals() as received:
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
                    if received:
                        self._interrupt(received[0])
                    if self._is_checkpoint_due():
                        self.save()
                self._save_once()
                metrics = self._evaluate(full=True)
                if received:
                    self._interrupt(received[0])
            return metrics
        finally:
            for callback in self.callbacks:
                callback.on_train_end(self)

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
        rate = learning_rate(
            self.step, self.optimizer_config.lr, self.config.max_steps, self.schedule
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        accumulation = self.config.gradient_accumulation_steps
        first = self.step * accumulation
        batches = [self.train_data.batch(first + i) for i in range(accumulation)]
        counts = [count_labels(batch["labels"]) for batch in batches]
        labels = sum(counts)
        loss = torch.zeros((), device=self.device)
        for batch, count in zip(batches, counts, strict=True):
            if count:
                input_ids = batch["input_ids"].to(self.device, non_blocking=True)
                targets = batch["labels"].to(self.device, non_blocking=True)
                with autocast(self.precision, self.device):
                    part = self.model.compute_loss(input_ids, targets) * (count / labels)
                part.backward()  # type: ignore[no-untyped-call]
                loss += part.detach()
        self._update_weights(float(loss), rate)
        self.step += 1
        tokens = sum(batch["input_ids"].numel() for batch in batches)
        self.tokens += tokens
        self._window["loss"] += float(loss) * labels
        self._window["labels"] += labels
        self._window["tokens"] += tokens
        self._window["seconds"] += time.perf_counter() - started

    def _update_weights(self, loss: float, rate: float) -> None:
        limit = self.config.max_grad_norm
        norm = torch.nn.utils.clip_grad_norm_(
            self.model.parameters(), limit if limit is not None else math.inf
        )
        self._gradient_norm = float(norm)
        for name, value in (("loss", loss), ("gradient norm", self._gradient_norm)):
            if not math.isfinite(value):
                steps = checkpoint.steps_in(self.checkpoints) if self.checkpoints else []
                last = f"{self.checkpoints}/step_{steps[-1]}" if steps else "none was saved yet"
                raise TrainingError(
                    f"the {name} is {value} at step {self.step + 1} (learning rate {rate:.2e}); "
                    "the weights were left as they were",
                    f"lower optimizer.lr or raise schedule.warmup_steps. Last good checkpoint: {last}",
                )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _log(self) -> None:
        window, self._window = self._window, dict.fromkeys(self._window, 0)
        if not window["labels"]:
            return
        loss = window["loss"] / window["labels"]
        metrics = {
            "loss": loss,
            "perplexity": math.exp(min(loss, 700)),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "gradient_norm": self._gradient_norm,
            "tokens_per_second": window["tokens"] / window["seconds"],
        }
        self._write_row(metrics, "train")
        for callback in self.callbacks:
            callback.on_log(self, metrics)

    def _write_row(self, metrics: Mapping[str, float], split: str) -> None:
        if self.run is not None:
            epoch = self.tokens / self.tokens_per_epoch if self.tokens_per_epoch else None
            self.run.log(metrics, step=self.step, split=split, epoch=epoch)

    def _evaluate(self, full: bool) -> dict[str, float]:
        """Judge the model; `full`: on the whole validation split, once per step."""
        data = self.val_data if full else self.quick_val_data
        if data is None:
            return {}
        if self._full_evaluation and self._full_evaluation[0] == self.step:
            return self._full_evaluation[1]
        metrics = self.evaluator.evaluate(data)
        if data is self.val_data:
            self._full_evaluation = (self.step, metrics)
        if metrics["loss"] < self.best_loss:
            self.best_loss = metrics["loss"]
            if self.checkpoints and self._saved_step == self.step:
                checkpoint.mark_best(self.checkpoints, self.step, self.best_loss)
        for callback in self.callbacks:
            callback.on_evaluate(self, metrics)
        # When a callback stops training here, the full evaluation of this step is the one to keep.
        if full or not self.should_stop or data is self.val_data:
            self._write_row(metrics, "val")
        return metrics

    def save(self) -> None:
        """Write a training checkpoint; a failure (a full disk) leaves the earlier ones as they are."""
        if self.checkpoints is None:
            return
        groups, tensors = checkpoint.pack_optimizer(self.optimizer)
        rng_values, rng_tensors = get_rng_state()
        state = {
            "step": self.step,
            "tokens": self.tokens,
            "best_loss": self.best_loss,
            "window": self._window,
            "log_rows": self.run.rows if self.run else 0,
            "fingerprint": self.fingerprint,
            "precision": self.precision,
            "param_groups": groups,
            "rng": rng_values,
            "callbacks": {key: callback.state() for key, callback in self._keyed_callbacks()},
        }
        tensors |= {f"rng.{name}": tensor for name, tensor in rng_tensors.items()}
        path = self.checkpoints / f"step_{self.step}"
        checkpoint.save_checkpoint(self.model, path, state, tensors)
        self._saved_step = self.step
        checkpoint.delete_old_checkpoints(self.checkpoints, self.step, self.config.keep_checkpoints)
        if self.run is not None:
            self.run.update(tokens=self.tokens)

    def resume(self) -> None:
        """Continue from the newest whole checkpoint of the run, or from the beginning without one.

        Raises CheckpointError when it was trained on other data or does not fit the model.
        """
        if self.checkpoints is None or self.run is None:
            raise TrainingError("only a run with a folder can be resumed")
        saved = checkpoint.latest_checkpoint(self.checkpoints, self.device)
        if saved is None:
            get_logger("training").info("no checkpoint was saved: starting from the beginning")
            self.run.resume_from(0)
            return
        state, tensors = saved.state, saved.tensors
        if state["fingerprint"] != self.fingerprint:
            raise CheckpointError(
                f"{saved.path} was trained on other data than data.* gives now",
                "restore the text it was prepared from, or start a new experiment",
            )
        checkpoint.load_model(self.model, saved.path, self.device)
        checkpoint.unpack_optimizer(self.optimizer, state["param_groups"], tensors)
        set_rng_state(
            state["rng"],
            {k.removeprefix("rng."): v.cpu() for k, v in tensors.items() if k.startswith("rng.")},
        )
        self.step, self.tokens = state["step"], state["tokens"]
        self._saved_step = self.step
        self.best_loss, self._window = state["best_loss"], state["window"]
        for key, callback in self._keyed_callbacks():
            if key in state["callbacks"]:
                callback.load_state(state["callbacks"][key])
        self.run.resume_from(state["log_rows"])
        get_logger("training").info("resumed", extra={"step": self.step})

    def _keyed_callbacks(self) -> list[tuple[str, Callback]]:
        """`Samples.0`, `EarlyStopping.0`: the class, and which one of that class."""
        names = [type(callback).__name__ for callback in self.callbacks]
        keys = [f"{name}.{names[:index].count(name)}" for index, name in enumerate(names)]
        return list(zip(keys, self.callbacks, strict=True))

    def _save_once(self) -> None:
        if self._saved_step != self.step:
            self.save()

    def _interrupt(self, signal_number: int) -> None:
        self._save_once()
        name = self.run.name if self.run else ""
        how = f"; continue with --name {name} --resume" if self.run else ""
        raise Interrupted(
            f"interrupted at step {self.step}, everything is saved{how}", signal_number
        )


@contextmanager
def _stop_on_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM, to be obeyed between two steps; a second one acts at once."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # Python delivers signals to the main thread only
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def receive(number: int, frame: object) -> None:
        received.append(number)
        for each, handler in previous.items():
            signal.signal(each, handler)

    for number in previous:
        signal.signal(number, receive)
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
