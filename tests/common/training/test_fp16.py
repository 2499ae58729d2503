"""Half precision on the CPU: an overflow is skipped as PyTorch's own GradScaler does, logged or not."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from common.data.batch import Batch
from common.errors import TrainingError
from common.experiments.run import Run
from common.models import Decoder
from common.training import Callback, Trainer, TrainingConfig
from common.training.checkpoints import steps_in
from common.training.config import OptimizerConfig, ScheduleConfig
from common.training.precision import LossScaler
from common.training.schedules import learning_rate_factor
from common.utils import query_experiments, start_experiment
from tests.trainers import make_trainer

pytestmark = pytest.mark.slow
VOCAB, LENGTH, STEPS = 11, 8, 8
SCHEDULE = ScheduleConfig(warmup_steps=4)
OPTIMIZER = OptimizerConfig(lr=0.01, weight_decay=0.1, betas=(0.9, 0.99))


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Batches:
    def batch(self, index: int) -> Batch:
        generator = torch.Generator().manual_seed(index)
        ids = torch.randint(0, VOCAB, (2, LENGTH), generator=generator)
        return {"input_ids": ids, "labels": ids}


def decoder(**options: Any) -> Decoder:
    torch.manual_seed(0)
    return Decoder(
        VOCAB, num_layers=1, num_heads=2, hidden_size=8, context_length=LENGTH, **options
    )


def trainer(model: Decoder, *, scale: float, growth_steps: int = 3, **options: Any) -> Trainer:
    chosen: dict[str, Any] = {"max_steps": STEPS, "log_every_steps": 1, "eval_every_steps": 2}
    chosen |= {"precision": "fp16", "compile": False, "device": "cpu"}
    others = {key: options.pop(key) for key in ("run", "callbacks", "val_data") if key in options}
    made = make_trainer(
        model,
        Batches(),
        TrainingConfig(**(chosen | options)),
        optimizer=OPTIMIZER,
        schedule=SCHEDULE,
        **others,
    )
    made.set_up()
    made.scaler = made.state.scaler = LossScaler(made.device, scale, growth_steps)
    return made


def by_hand(scale: float, growth_steps: int, accumulation: int) -> tuple[Decoder, list[float]]:
    """PyTorch's AdamW and GradScaler in the loop of its manual; the scale after each step."""
    model = decoder()
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=0.01,
        betas=(0.9, 0.99),
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=growth_steps)
    scales = []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * learning_rate_factor(step, STEPS, SCHEDULE)
        for part in range(accumulation):
            ids = Batches().batch(step * accumulation + part)["input_ids"]
            with torch.autocast("cpu", dtype=torch.float16):
                loss = model.compute_loss(ids, ids) / accumulation
            scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        scales.append(scaler.get_scale())
    return model, scales


@pytest.mark.parametrize("log_every_steps", [1, 3])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_overflows_are_skipped_as_by_pytorchs_scaler(
    log_every_steps: int, accumulation: int
) -> None:
    scales: list[float] = []

    class Watch(Callback):
        def on_step(self, trainer: Trainer) -> None:
            assert trainer.scaler is not None
            scales.append(float(trainer.scaler.scale))

    model = decoder()
    trainer(
        model,
        scale=2.0**22,
        log_every_steps=log_every_steps,
        gradient_accumulation_steps=accumulation,
        callbacks=[Watch()],
    ).fit()
    expected, expected_scales = by_hand(2.0**22, 3, accumulation)
    assert scales == expected_scales and scales[1] == 2.0**20, "the first steps overflow"
    assert max(scales[3:]) > min(scales), "and it grows again"
    for mine, its in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-6)


def rows_of(run: Run) -> list[dict[str, Any]]:
    run.finish()
    frame = query_experiments(
        f"SELECT step, loss, gradient_norm, loss_scale, learning_rate FROM experiments "
        f"WHERE experiment_name = '{run.name}' AND split = 'train' ORDER BY step"
    )
    return frame.to_dict("records")


def test_the_row_of_a_skipped_step_has_a_loss_a_scale_and_no_gradient_norm() -> None:
    run = start_experiment("overflows")
    trainer(decoder(), scale=2.0**22, run=run).fit()
    rows = rows_of(run)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert all(math.isfinite(row["loss"]) for row in rows)
    skipped = [row for row in rows if math.isnan(row["gradient_norm"])]
    assert [row["step"] for row in skipped][:2] == [1, 2] and len(skipped) < STEPS
    assert [row["loss_scale"] for row in rows][:2] == [2.0**21, 2.0**20]
    for row in rows:  # a skipped step is a step of the schedule
        factor = learning_rate_factor(row["step"] - 1, STEPS, SCHEDULE)
        assert row["learning_rate"] == pytest.approx(0.01 * factor)


def test_a_run_that_overflowed_resumes_to_the_same_weights_and_rows() -> None:
    class Stop(Callback):
        def on_step(self, trainer: Trainer) -> None:
            if trainer.step == 3:
                raise RuntimeError("killed")

    whole = decoder(dropout=0.1)
    reference = start_experiment("reference")
    trainer(whole, scale=2.0**22, run=reference).fit()
    run = start_experiment("resumed")
    with pytest.raises(RuntimeError):
        trainer(decoder(dropout=0.1), scale=2.0**22, run=run, callbacks=[Stop()]).fit()
    again = decoder(dropout=0.1)
    going_on = trainer(again, scale=1.0, run=run)
    going_on.resume()
    assert going_on.step == 2 and going_on.scaler is not None
    going_on.scaler.growth_steps = 3  # a constant of the class, but for this file
    assert float(going_on.scaler.scale) == 2.0**20
    going_on.fit()
    for mine, its in zip(again.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, its)
    assert str(rows_of(run)) == str(rows_of(reference))


def test_fp16_goes_on_scaling_where_precision_is_auto_by_now() -> None:
    run = start_experiment("auto_by_now")
    trainer(decoder(), scale=2.0**22, max_steps=2, run=run).fit()
    config = TrainingConfig(max_steps=STEPS, precision="auto", compile=False, device="cpu")
    going_on = make_trainer(
        decoder(), Batches(), config, optimizer=OPTIMIZER, schedule=SCHEDULE, run=run
    )
    going_on.resume()
    assert going_on.precision == "fp16" and going_on.scaler is not None
    assert float(going_on.scaler.scale) == 2.0**20
    run.finish()


class Broken(Decoder):
    """A gradient that is infinite at any scale, or a loss that is."""

    gradient_only = True

    def __init__(self, vocab_size: int, **options: Any) -> None:
        super().__init__(vocab_size, **options)
        self.zero = torch.nn.Parameter(torch.zeros(()))

    def compute_loss(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        loss = super().compute_loss(input_ids, labels)
        return loss + self.zero.sqrt() if self.gradient_only else loss * math.inf


@pytest.mark.parametrize(
    ("gradient_only", "reason"),
    [(True, "at every loss scale"), (False, "the loss is inf at step 1")],
)
def test_what_no_scale_helps_is_divergence(gradient_only: bool, reason: str) -> None:
    model = Broken(VOCAB, num_layers=1, num_heads=2, hidden_size=8, context_length=LENGTH)
    model.gradient_only = gradient_only
    before = [parameter.clone() for parameter in model.parameters()]
    run = start_experiment(f"diverges_{gradient_only}")
    with pytest.raises(TrainingError, match=reason):
        trainer(model, scale=2.0**-10, max_steps=50, log_every_steps=7, run=run).fit()
    run.finish("failed")
    for mine, its in zip(model.parameters(), before, strict=True):
        assert torch.equal(mine, its)
    assert all(step < 6 for step in steps_in(run.directory / "checkpoints"))
