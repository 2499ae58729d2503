"""The loop: gradients, clipping, logs, best checkpoints, and what happens when a loss is not finite."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from common.data.batch import Batch
from common.data.loader import ShuffledWindows
from common.errors import CheckpointError, ResearchError, TrainingError
from common.experiments.run import Run
from common.models import BaseLanguageModel, Decoder
from common.training import Callback, Evaluator, Trainer, TrainingConfig
from common.training import trainer as trainer_module
from common.training.checkpoints import best_checkpoint, latest_checkpoint, steps_in
from common.training.config import OptimizerConfig, ScheduleConfig
from common.utils import query_experiments, start_experiment
from tests.trainers import make_trainer

VOCAB, LENGTH = 11, 8


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Models this small are slower on many threads, and much slower where others compute too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def decoder(seed: int = 0, **options: Any) -> Decoder:
    torch.manual_seed(seed)
    shape = {"num_layers": 1, "num_heads": 2, "hidden_size": 8, "context_length": LENGTH}
    return Decoder(VOCAB, **(shape | options))


class Batches:
    """Random batches, a function of the index; some labels left out; remembers what was asked for."""

    def __init__(self, rows: int = 2, ignored: float = 0.0) -> None:
        self.rows, self.ignored = rows, ignored
        self.asked: list[int] = []

    def batch(self, index: int) -> Batch:
        self.asked.append(index)
        generator = torch.Generator().manual_seed(index)
        ids = torch.randint(0, VOCAB, (self.rows, LENGTH), generator=generator)
        labels = ids.clone()
        # The share that is left out differs from batch to batch.
        share = self.ignored * (index % 3) / 2
        labels[torch.rand(ids.shape, generator=generator) < share] = -100
        return {"input_ids": ids, "labels": labels}


class Joined:
    """`count` neighbouring batches of `source` as one."""

    def __init__(self, source: Batches, count: int) -> None:
        self.source, self.count = source, count

    def batch(self, index: int) -> Batch:
        parts = [self.source.batch(index * self.count + i) for i in range(self.count)]
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def config(**options: Any) -> TrainingConfig:
    defaults = {"max_steps": 6, "device": "cpu", "eval_every_steps": 3, "log_every_steps": 1}
    return TrainingConfig(**(defaults | options))


SCHEDULE = ScheduleConfig(warmup_steps=2)


@pytest.fixture
def start() -> Iterator[Callable[[str], Run]]:
    runs: list[Run] = []

    def start_run(name: str = "tested") -> Run:
        runs.append(start_experiment(name))
        return runs[-1]

    yield start_run
    for run in runs:
        if run.manifest["status"] == "running":
            run.finish("failed")


def rows_of(run: Run) -> list[dict[str, Any]]:
    run.finish()
    frame = query_experiments(f"SELECT * FROM experiments WHERE experiment_name = '{run.name}'")
    return frame.to_dict("records")


# Gradients and updates


@pytest.mark.parametrize("ignored", [0.0, 0.9])
def test_accumulated_gradients_equal_those_of_the_big_batch(ignored: float) -> None:
    few, many = decoder().double(), decoder().double()
    options = {"max_steps": 5, "max_grad_norm": 0.05}
    make_trainer(
        few, Joined(Batches(ignored=ignored), 3), config(**options), schedule=SCHEDULE
    ).fit()
    make_trainer(
        many,
        Batches(ignored=ignored),
        config(**options, gradient_accumulation_steps=3),
        schedule=SCHEDULE,
    ).fit()
    for mine, its in zip(few.parameters(), many.parameters(), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-9, atol=1e-12)


def test_training_equals_a_plain_loop_with_clipping_and_schedule() -> None:
    """AdamW with a large eps, so that the size of the gradient, not only its sign, matters."""
    optimizer = OptimizerConfig(lr=0.05, eps=1.0, weight_decay=0.0, betas=(0.9, 0.99))
    trained, by_hand = decoder().double(), decoder().double()
    schedule = ScheduleConfig(name="linear", warmup_steps=2, min_lr_ratio=0.0)
    make_trainer(
        trained,
        Batches(),
        config(max_steps=4, max_grad_norm=0.01),
        optimizer=optimizer,
        schedule=schedule,
    ).fit()
    plain = torch.optim.Adam(by_hand.parameters(), lr=1.0, betas=(0.9, 0.99), eps=1.0)
    for step, rate in enumerate([0.025, 0.05, 0.05, 0.0]):
        batch = Batches().batch(step)
        plain.zero_grad()
        by_hand(batch["input_ids"], labels=batch["labels"])["loss"].backward()
        gradients = [p.grad for p in by_hand.parameters()]
        norm = math.sqrt(sum(float((g**2).sum()) for g in gradients))
        assert norm > 0.01
        for gradient in gradients:
            gradient.mul_(0.01 / norm)
        plain.param_groups[0]["lr"] = rate
        plain.step()
    for mine, its in zip(trained.parameters(), by_hand.parameters(), strict=True):
        # clip_grad_norm_ divides by norm + 1e-6.
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-8)


def test_without_clipping_gradients_are_used_as_they_are() -> None:
    clipped, free, loose = decoder(), decoder(), decoder()
    optimizer = OptimizerConfig(eps=1.0)
    for model, limit in ((clipped, 1e-3), (free, None), (loose, 1e9)):
        make_trainer(model, Batches(), config(max_grad_norm=limit), optimizer=optimizer).fit()
    assert torch.equal(free.token_embedding.weight, loose.token_embedding.weight)
    assert not torch.equal(free.token_embedding.weight, clipped.token_embedding.weight)


def test_batches_are_asked_for_once_and_in_order() -> None:
    source = Batches()
    make_trainer(decoder(), source, config(max_steps=4, gradient_accumulation_steps=3)).fit()
    asked = source.asked[2:]  # the first one is looked at for its labels and its shape
    assert asked[:12] == list(range(12))
    assert len(asked) == len(set(asked)) <= 14  # and those that were prefetched


class Unlabelled(Batches):
    """No labels but in the batches below `first`."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self.first = first

    def batch(self, index: int) -> Batch:
        batch = super().batch(index)
        if index < self.first:
            return batch
        return batch | {"labels": torch.full_like(batch["labels"], -100)}


def test_a_batch_without_labels_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    once, on = decoder(), decoder()
    constant = ScheduleConfig(name="constant", warmup_steps=0)
    make_trainer(once, Unlabelled(1), config(max_steps=1), schedule=constant).fit()
    make_trainer(on, Unlabelled(1), config(max_steps=4), schedule=constant).fit()
    for mine, its in zip(once.parameters(), on.parameters(), strict=True):
        assert torch.equal(mine, its)
    assert "nothing was trained up to step 2" in capsys.readouterr().err


def frozen() -> Decoder:
    return decoder().requires_grad_(False)


VAL = [Batches().batch(0)]
UNLABELLED = [Unlabelled(0).batch(0)]
TRAINS_NOTHING: dict[str, tuple[dict[str, Any], str]] = {
    "no labels": ({"train_data": Unlabelled(0)}, "none of the first 100 training batches"),
    "no validation labels": ({"val_data": UNLABELLED}, "val_data has no label to predict"),
    "no quick labels": ({"quick_val_data": []}, "quick_val_data has no label to predict"),
    "others": ({"other_val_data": {"b.txt": UNLABELLED}}, "b.txt has no label to predict"),
    "foreign ids": ({"train_data": [torch.full((2, LENGTH), VOCAB)]}, f"holds the id {VOCAB}"),
    "foreign val": ({"val_data": [torch.full((2, LENGTH), VOCAB)]}, f"holds the id {VOCAB}"),
    "one pass": ({"val_data": iter(VAL)}, "val_data is an iterator"),
    "frozen": ({"model": frozen()}, "all are frozen"),
    "no rate": ({"optimizer": OptimizerConfig(lr_factors={"*": 0.0})}, "lr_factors is 0"),
}


@pytest.mark.parametrize("kind", TRAINS_NOTHING)
def test_what_would_train_or_evaluate_nothing_is_refused_before_training(kind: str) -> None:
    changed, reason = TRAINS_NOTHING[kind]
    given: dict[str, Any] = {"model": decoder(), "train_data": Batches(), "config": config()}
    with pytest.raises(ResearchError, match=reason) as caught:
        make_trainer(**(given | {"val_data": VAL} | changed))
    assert caught.value.hint


@pytest.mark.parametrize(("warmup", "steps"), [(8, 6), (6, 6)])
def test_a_warm_up_that_does_not_end_says_how_far_the_rate_gets(
    warmup: int, steps: int, capsys: pytest.CaptureFixture[str]
) -> None:
    rates: list[float] = []

    class Watch(Callback):
        def on_log(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
            rates.append(metrics["learning_rate"])

    schedule = ScheduleConfig(warmup_steps=warmup)
    make_trainer(
        decoder(),
        Batches(),
        config(max_steps=steps),
        optimizer=OptimizerConfig(lr=1.0e-3),
        schedule=schedule,
        callbacks=[Watch()],
    ).fit()
    assert max(rates) == pytest.approx(1e-3 * steps / warmup)
    assert ("reaches only 75% of" in capsys.readouterr().err) == (warmup > steps)


def test_dropout_is_on_in_training_and_back_on_after_an_evaluation() -> None:
    class Watch(Callback):
        modes: ClassVar[list[bool]] = []

        def on_step(self, trainer: Trainer) -> None:
            self.modes.append(trainer.model.training)

    make_trainer(
        decoder(dropout=0.1),
        Batches(),
        config(eval_every_steps=2),
        val_data=[Batches().batch(0)],
        callbacks=[Watch()],
    ).fit()
    assert Watch.modes == [True] * 6


# Rows


def test_logged_rows_are_token_weighted_means_over_the_steps_since_the_last(
    start: Callable[..., Run],
) -> None:
    run = start()
    source = Batches(ignored=0.9)
    every = OptimizerConfig(lr=1e-9, weight_decay=0.0)  # weights that hardly move
    make_trainer(
        decoder(),
        source,
        config(max_steps=7, log_every_steps=3, eval_every_steps=100),
        optimizer=every,
        schedule=ScheduleConfig(warmup_steps=0, name="constant"),
        run=run,
        units_per_epoch=160,
    ).fit()
    rows = rows_of(run)
    assert [(row["step"], row["split"]) for row in rows] == [(3, "train"), (6, "train")]
    model = decoder().eval()
    for row, steps in zip(rows, (range(3), range(3, 6)), strict=True):
        metrics = Evaluator(model).evaluate([Batches(ignored=0.9).batch(i) for i in steps])
        assert row["loss"] == pytest.approx(metrics["loss"], rel=1e-5)
        assert row["perplexity"] == pytest.approx(metrics["perplexity"], rel=1e-5)
        assert row["learning_rate"] == 1e-9
        assert row["gradient_norm"] > 0 and row["tokens_per_second"] > 0
        assert row["epoch"] == row["step"] * 2 * LENGTH / 160


def test_the_logged_learning_rate_is_that_of_the_optimizer_whatever_a_parameter_has(
    start: Callable[..., Run],
) -> None:
    run = start()
    faster = OptimizerConfig(lr=1e-3, lr_factors={"token_embedding.*": 5.0})  # the first group
    make_trainer(
        decoder(),
        Batches(),
        config(log_every_steps=6),
        optimizer=faster,
        schedule=ScheduleConfig(warmup_steps=0, min_lr_ratio=0.1),
        run=run,
    ).fit()
    assert [row["learning_rate"] for row in rows_of(run)] == [1e-3 * 0.1]


def test_few_batches_have_a_split_of_their_own_and_val_is_of_all_and_the_final_weights(
    start: Callable[..., Run],
) -> None:
    run = start()
    quick, full = [Batches().batch(50)], [Batches().batch(i) for i in range(50, 54)]
    model = decoder()
    metrics = make_trainer(
        model, Batches(), config(), val_data=full, quick_val_data=quick, run=run
    ).fit()
    assert metrics == Evaluator(model).evaluate(full)
    rows = [row for row in rows_of(run) if row["split"] != "train"]
    assert [(row["split"], row["step"], row["num_tokens"]) for row in rows] == [
        ("val_quick", 3, 14),
        ("val_quick", 6, 14),
        ("val", 6, 56),
    ]
    assert rows[-1]["loss"] == metrics["loss"]
    assert rows[-2]["loss"] == Evaluator(model).evaluate(quick)["loss"]


def test_without_quick_data_every_evaluation_is_of_val(start: Callable[..., Run]) -> None:
    run = start()
    make_trainer(decoder(), Batches(), config(), val_data=VAL, run=run).fit()
    assert {(r["step"], r["split"]) for r in rows_of(run) if r["split"] != "train"} == {
        (3, "val"),
        (6, "val"),
    }


def test_without_validation_data_nothing_is_evaluated() -> None:
    assert make_trainer(decoder(), Batches(), config()).fit() == {}


# Stopping


class Worse(BaseLanguageModel):
    """Its validation loss is its parameter, which training drives up."""

    def __init__(self, vocab_size: int = VOCAB) -> None:
        super().__init__(vocab_size)
        self.value = torch.nn.Parameter(torch.ones(()))

    def forward(
        self, input_ids: torch.Tensor, labels: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        loss = 10 - self.value if self.training else self.value + 0
        return {"logits": self.value.expand(*input_ids.shape, VOCAB), "loss": loss}


def test_early_stopping_ends_after_its_patience_and_keeps_the_best(
    start: Callable[..., Run],
) -> None:
    from common.training.callbacks.early_stopping import EarlyStopping

    run = start()
    trainer = make_trainer(
        Worse(),
        Batches(),
        config(max_steps=100, eval_every_steps=5),
        val_data=[Batches().batch(0)],
        run=run,
        callbacks=[EarlyStopping(patience=3)],
    )
    trainer.fit()
    assert trainer.step == 20  # the best at 5, then three without gain
    directory = run.directory / "checkpoints"
    assert best_checkpoint(directory).name == "step_5"
    assert steps_in(directory) == [5, 15, 20]
    assert [r["step"] for r in rows_of(run) if r["split"] == "val"] == [5, 10, 15, 20]


def test_stopping_early_logs_its_step_once(start: Callable[..., Run]) -> None:
    """Also where the evaluations on the way and the last one are different batches."""
    from common.training.callbacks.early_stopping import EarlyStopping

    run = start()
    make_trainer(
        Worse(),
        Batches(),
        config(max_steps=100, eval_every_steps=5),
        val_data=[Batches().batch(i) for i in range(3)],
        quick_val_data=[Batches().batch(0)],
        run=run,
        callbacks=[EarlyStopping(patience=1)],
    ).fit()
    steps = [(r["split"], r["step"]) for r in rows_of(run) if r["split"] != "train"]
    assert steps == [("val_quick", 5), ("val_quick", 10), ("val", 10)]


def test_early_stopping_takes_no_full_loss_for_one_of_few_batches(
    start: Callable[..., Run],
) -> None:
    """The full loss is higher here than any of few batches, which fall at every step."""
    from common.training.callbacks.early_stopping import EarlyStopping

    hard, easy = torch.full((2, LENGTH), 5), torch.full((2, LENGTH), 1)
    stopping = EarlyStopping(patience=1)
    trainer = make_trainer(
        Better(),
        Batches(),
        config(),
        val_data=[hard, easy],
        quick_val_data=[easy],
        callbacks=[stopping],
    )
    assert trainer.fit()["loss"] > stopping.best == trainer.state.best_loss
    assert stopping.evaluations_without_gain == 0 and not trainer.should_stop


class Better(Worse):
    """Training lowers its loss; validation adds the mean id of the batch."""

    def forward(
        self, input_ids: torch.Tensor, labels: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        added = 0 if self.training else input_ids.float().mean()
        return {"logits": self.value.expand(*input_ids.shape, VOCAB), "loss": self.value + added}


def test_the_best_checkpoint_is_found_by_the_same_batches_at_every_step(
    start: Callable[..., Run],
) -> None:
    run = start()
    hard, easy = torch.full((2, LENGTH), 5), torch.full((2, LENGTH), 1)
    trainer = make_trainer(
        Better(), Batches(), config(), val_data=[hard, easy], quick_val_data=[easy], run=run
    )
    assert trainer.fit()["loss"] > 3
    assert best_checkpoint(run.directory / "checkpoints").name == "step_6"
    assert trainer.state.best_loss < 2


def test_other_sets_are_evaluated_where_a_full_evaluation_stopped_training(
    start: Callable[..., Run],
) -> None:
    from common.training.callbacks.early_stopping import EarlyStopping

    run = start()
    make_trainer(
        Worse(),
        Batches(),
        config(max_steps=100, eval_every_steps=5),
        val_data=VAL,
        other_val_data={"other": VAL},
        run=run,
        callbacks=[EarlyStopping(patience=1)],
    ).fit()
    assert [row["step"] for row in rows_of(run) if row["split"] == "other"] == [10]


def test_a_callback_that_stops_training_leaves_a_checkpoint_of_the_final_weights(
    start: Callable[..., Run],
) -> None:
    class StopAtFour(Callback):
        def on_step(self, trainer: Trainer) -> None:
            trainer.should_stop = trainer.step == 4

    run = start()
    model = decoder()
    trainer = make_trainer(model, Batches(), config(), run=run, callbacks=[StopAtFour()])
    trainer.fit()
    assert trainer.step == 4
    latest = latest_checkpoint(run.directory / "checkpoints")
    assert latest is not None and latest.state["step"] == 4
    loaded = Decoder.load_checkpoint(latest.path)
    assert torch.equal(loaded.token_embedding.weight, model.token_embedding.weight)


# A loss that is not finite


class Poisoned(Decoder):
    """A batch of zeros makes the loss, or only its gradient, what it should not be."""

    poison = "nan"

    def __init__(self, vocab_size: int, **options: Any) -> None:
        super().__init__(vocab_size, **options)
        self.zero = torch.nn.Parameter(torch.zeros(()))

    def compute_loss(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        loss = super().compute_loss(input_ids, labels)
        if input_ids.any():
            return loss
        return loss + self.zero.sqrt() if self.poison == "gradient" else loss * float(self.poison)


def poisoned(kind: str) -> Poisoned:
    torch.manual_seed(0)
    model = Poisoned(VOCAB, num_layers=1, num_heads=2, hidden_size=8, context_length=LENGTH)
    model.poison = kind
    return model


class PoisonAtStep4(Batches):
    def batch(self, index: int) -> Batch:
        batch = super().batch(index)
        return {k: torch.zeros_like(v) for k, v in batch.items()} if index == 4 else batch


@pytest.mark.parametrize(
    ("poison", "reason"),
    [("nan", "loss is nan"), ("inf", "loss is inf"), ("gradient", "gradient norm is")],
)
def test_a_loss_that_is_not_finite_stops_before_the_weights_are_touched(
    poison: str, reason: str
) -> None:
    model = poisoned(poison)
    states: list[dict[str, torch.Tensor]] = []

    class Keep(Callback):
        ended = 0

        def on_step(self, trainer: Trainer) -> None:
            states.append({k: v.clone() for k, v in trainer.model.state_dict().items()})

        def on_train_end(self, trainer: Trainer) -> None:
            Keep.ended += 1

    with pytest.raises(TrainingError, match=reason) as caught, start_experiment("burst") as run:
        make_trainer(
            model, PoisonAtStep4(), config(), schedule=SCHEDULE, run=run, callbacks=[Keep()]
        ).fit()
    error = caught.value
    assert "at step 5" in error.message and "learning rate" in error.message
    assert error.hint.endswith("checkpoints/step_3") and Path(error.hint.split(": ")[1]).is_dir()
    assert len(states) == 4 and Keep.ended == 1
    for name, value in model.state_dict().items():
        assert torch.equal(value, states[-1][name]) and value.isfinite().all()
    runs = query_experiments("SELECT name, status FROM runs")
    assert runs.to_dict("records") == [{"name": "burst", "status": "failed"}]
    assert [p.name for p in (run.directory / "checkpoints").glob("step_*")] == ["step_3"]


def test_a_loss_that_is_not_finite_before_any_checkpoint_says_so() -> None:
    class AtOnce(Batches):
        def batch(self, index: int) -> Batch:
            return {k: torch.zeros_like(v) for k, v in super().batch(index).items()}

    model = poisoned("nan")
    with pytest.raises(TrainingError, match="step 1") as caught:
        make_trainer(model, AtOnce(), config()).fit()
    assert "none saved yet" in caught.value.hint


# Resuming in one process; test_resume.py kills real ones


class Counter(Callback):
    def __init__(self) -> None:
        self.steps = 0

    def on_step(self, trainer: Trainer) -> None:
        self.steps += 1

    def state(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]


class Break(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, trainer: Trainer) -> None:
        if trainer.step == self.step:
            raise RuntimeError("pulled the plug")


def test_a_run_that_broke_goes_on_to_the_same_weights_with_the_state_of_its_callbacks(
    start: Callable[..., Run],
) -> None:
    val = [Batches().batch(99)]

    def trainer(model: Decoder, run: Run, *callbacks: Callback) -> Trainer:
        return make_trainer(
            model,
            Batches(ignored=0.5),
            config(max_steps=10, checkpoint_every_steps=4, gradient_accumulation_steps=2),
            val_data=val,
            run=run,
            callbacks=callbacks,
            fingerprint={"text": "a"},
        )

    whole = decoder(dropout=0.3)
    expected = trainer(whole, start("whole")).fit()

    run = start("broken")
    with pytest.raises(RuntimeError, match="plug"):
        trainer(decoder(dropout=0.3), run, Counter(), Break(8)).fit()
    resumed = decoder(seed=5, dropout=0.3)
    torch.manual_seed(12345)
    counter = Counter()
    again = trainer(resumed, run, counter)
    again.resume()
    assert again.step == 6 and counter.steps == 6
    assert again.fit() == expected
    assert counter.steps == 10
    for mine, its in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(mine, its)
    assert [r["step"] for r in rows_of(run) if r["split"] == "train"] == list(range(1, 11))


def test_two_callbacks_of_one_class_keep_their_own_state(start: Callable[..., Run]) -> None:
    run = start()
    first, second = Counter(), Counter()
    second.steps = 100
    make_trainer(decoder(), Batches(), config(), run=run, callbacks=[first, second]).fit()
    restored = [Counter(), Counter()]
    make_trainer(decoder(), Batches(), config(), run=run, callbacks=restored).resume()
    assert [counter.steps for counter in restored] == [6, 106]


def test_a_resume_on_other_data_is_refused(start: Callable[..., Run]) -> None:
    run = start()
    make_trainer(decoder(), Batches(), config(), run=run, fingerprint={"text": "a"}).fit()
    with pytest.raises(CheckpointError, match="different data"):
        make_trainer(decoder(), Batches(), config(), run=run, fingerprint={"text": "b"}).resume()


@pytest.mark.parametrize(
    ("options", "variable", "cpu", "threads"),
    [
        ({}, None, None, 2),
        ({"num_threads": 1}, None, None, 1),
        ({}, "1", None, 1),
        ({}, None, "another CPU", 1),  # whose sums differ anyway
    ],
)
def test_a_resume_computes_with_the_recorded_number_of_threads_unless_one_is_given(
    start: Callable[..., Run],
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, int],
    variable: str | None,
    cpu: str | None,
    threads: int,
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    run = start()
    torch.set_num_threads(2)
    try:
        make_trainer(decoder(), Batches(), config(), run=run).fit()
        torch.set_num_threads(1)
        if cpu is not None:
            monkeypatch.setattr(trainer_module, "cpu_name", lambda: cpu)
        make_trainer(decoder(), Batches(), config(**options), run=run).resume()
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(1)


def test_a_run_with_the_windows_of_an_earlier_version_is_refused(start: Callable[..., Run]) -> None:
    """Its epochs left tokens out: going on with those of today would be another training."""
    tokens = np.arange(200).astype("<u2") % VOCAB

    def source() -> ShuffledWindows:
        return ShuffledWindows(tokens, batch_size=2, context_length=LENGTH)

    class Earlier:
        def batch(self, index: int) -> Batch:
            return source().batch(index)

    run = start()
    make_trainer(decoder(), Earlier(), config(), run=run, fingerprint={"train": "a"}).fit()
    again = make_trainer(decoder(), source(), config(), run=run, fingerprint={"train": "a"})
    with pytest.raises(CheckpointError, match="order: None -> shuffled, version 2") as caught:
        again.resume()
    assert "--resume-anyway" in caught.value.hint
    again.resume(anyway=True)
    assert again.step == 6


def test_a_data_loader_trains_and_resumes_to_the_same_weights(start: Callable[..., Run]) -> None:
    def loader(seed: int = 7) -> DataLoader[Any]:
        ids = torch.randint(0, VOCAB, (11, LENGTH), generator=torch.Generator().manual_seed(0))
        generator = torch.Generator().manual_seed(seed)
        return DataLoader(TensorDataset(ids), batch_size=4, shuffle=True, generator=generator)

    def trainer(model: Decoder, run: Run, *callbacks: Callback, seed: int = 7) -> Trainer:
        return make_trainer(
            model,
            loader(seed),
            config(max_steps=10),
            val_data=DataLoader(loader().dataset, batch_size=4),
            run=run,
            callbacks=callbacks,
        )

    whole, run = decoder(), start("broken")
    never_broken = start("whole")
    expected = trainer(whole, never_broken).fit()
    assert [r["epoch"] for r in rows_of(never_broken) if r["split"] == "train"][2::3] == [1, 2, 3]
    assert expected["num_tokens"] == 11 * (LENGTH - 1)
    with pytest.raises(RuntimeError, match="plug"):
        trainer(decoder(), run, Break(8)).fit()
    with pytest.raises(CheckpointError, match="shuffled with seed 7 -> shuffled with seed 8"):
        trainer(decoder(), run, seed=8).resume()
    again = trainer(decoder(seed=5), run)
    again.resume()
    assert again.step == 6 and again.fit() == expected
    for mine, its in zip(whole.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(mine, its)


def test_a_trainer_without_a_run_writes_nothing(assets_dir: Path) -> None:
    trainer = make_trainer(decoder(), Batches(), config(), val_data=[Batches().batch(0)])
    trainer.fit()
    trainer.save()
    assert not assets_dir.exists()
    with pytest.raises(TrainingError, match="run"):
        trainer.resume()


def test_training_works_outside_of_the_main_thread() -> None:
    results: list[Mapping[str, float]] = []
    trainer = make_trainer(decoder(), Batches(), config(), val_data=[Batches().batch(0)])
    thread = threading.Thread(target=lambda: results.append(trainer.fit()))
    thread.start()
    thread.join()
    assert results and math.isfinite(results[0]["loss"])


class Valley(Worse):
    """Its validation loss falls until the parameter is 1.2, then rises."""

    def forward(
        self, input_ids: torch.Tensor, labels: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        output = super().forward(input_ids, labels)
        return output if self.training else output | {"loss": (self.value - 1.2).square()}


def test_checkpoints_are_the_latest_few_and_the_one_with_the_lowest_validation_loss(
    start: Callable[..., Run],
) -> None:
    losses: dict[int, float] = {}

    class Watch(Callback):
        def on_evaluate(self, trainer: Trainer, metrics: Mapping[str, float], split: str) -> None:
            losses[trainer.step] = metrics["loss"]

    run = start()
    val = [Batches().batch(0)]
    make_trainer(
        Valley(),
        Batches(),
        config(max_steps=40, eval_every_steps=2, keep_checkpoints=3),
        optimizer=OptimizerConfig(lr=0.01),
        schedule=ScheduleConfig(name="constant", warmup_steps=0),
        val_data=val,
        run=run,
        callbacks=[Watch()],
    ).fit()
    directory = run.directory / "checkpoints"
    best = min(losses, key=lambda step: losses[step])
    assert 2 < best < 36
    assert steps_in(directory) == [best, 36, 38, 40]
    path = best_checkpoint(directory)
    assert path.name == f"step_{best}"
    assert Evaluator(Valley.load_checkpoint(path)).evaluate(val)["loss"] == losses[best]
