"""Data, gradient filters and trainings of the grokking papers, against independent computations in float64."""

from __future__ import annotations

import copy
from collections import deque
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from apps.reproduction.runs import PaperRun
from common.data.batch import count_labels
from common.errors import TrainingError
from common.models import Decoder
from common.training import Callback, Trainer
from common.utils import query_experiments, start_experiment
from papers.grokking import addition, grokked, multiplication
from papers.grokking.filters import EMAFilter, GradientFilter, MAFilter, OrthogonalFilter
from papers.grokking.reproduce import ADDITION, DECODER, MLP, MULTIPLICATION, PAPER, setting
from tests.trainers import make_trainer

SHAPES = [(3, 2), (4,), ()]
TINY = MULTIPLICATION | {
    "modulus": 7,
    "width": 16,
    "batch_size": 8,
    "measure_every_steps": 5,
    "max_steps": 20,
}


def test_equations_are_all_products_with_a_number_that_can_be_divided_by() -> None:
    rows = multiplication.equations(7)
    assert rows.shape == (42, 5)
    assert {(int(a), int(b)) for a, _, b, _, _ in rows} == {
        (a, b) for a in range(7) for b in range(1, 7)
    }
    assert all(int(a) * int(b) % 7 == int(c) for a, _, b, _, c in rows)
    assert rows[:, 1].unique().tolist() == [8] and rows[:, 3].unique().tolist() == [7]


def test_an_epoch_has_every_equation_once_in_an_order_of_its_own() -> None:
    source = multiplication.Epochs(multiplication.equations(7), batch_size=8, seed=3)
    assert source.per_epoch == 6  # the last batch has 2 of 42
    epochs = [[source.batch(6 * epoch + i)["input_ids"] for i in range(6)] for epoch in (0, 1)]
    assert [len(batch) for batch in epochs[0]] == [8, 8, 8, 8, 8, 2]
    texts = [[tuple(row.tolist()) for row in torch.cat(epoch)] for epoch in epochs]
    assert sorted(texts[0]) == sorted(texts[1]) == sorted(map(tuple, source.rows.tolist()))
    assert texts[0] != texts[1]
    again = multiplication.Epochs(source.rows, batch_size=8, seed=3)
    assert torch.equal(again.batch(7)["input_ids"], source.batch(7)["input_ids"])


def test_only_the_answer_is_predicted_and_its_loss_is_that_of_the_shared_decoder() -> None:
    torch.manual_seed(0)
    batch = multiplication.as_batch(multiplication.equations(7)[:10])
    assert count_labels(batch["labels"]) == 10
    model = multiplication.make_model(TINY)
    short = model.compute_loss(batch["input_ids"], batch["labels"])
    whole = model(batch["input_ids"], labels=batch["labels"])
    assert short.item() == pytest.approx(whole["loss"].item(), rel=1e-5)
    right = whole["logits"][:, -2].argmax(dim=1) == batch["input_ids"][:, -1]
    assert model.accuracy(batch["input_ids"]) == pytest.approx(float(right.float().mean()))


def test_the_authors_blocks_equal_layers_of_pytorch() -> None:
    """x = norm(x); x = x + attention(x); x = x + mlp(norm(x)), with torch.nn.MultiheadAttention."""
    torch.manual_seed(0)
    model = multiplication.make_model(TINY).double()
    ids = multiplication.equations(7)[:6, :-1]
    x = model.token_embedding(ids) + model.position_embedding.weight[:4]
    mask = torch.full((4, 4), float("-inf"), dtype=torch.float64).triu(1)
    for block in model.blocks:
        attention = nn.MultiheadAttention(16, 4, batch_first=True).double()
        attention.in_proj_weight.data = block.mixer.query_key_value.weight.data
        attention.out_proj.weight.data = block.mixer.output.weight.data
        x = block.mixer_norm(x)
        x = x + attention(x, x, x, attn_mask=mask)[0]  # whose biases are 0, as ours
        inner = nn.functional.gelu(block.feedforward.input(block.feedforward_norm(x)))
        x = x + block.feedforward.output(inner)
    expected = model.head(model.final_norm(x))[:, -1]
    torch.testing.assert_close(model.next_logits(ids), expected, rtol=0, atol=1e-12)


def test_the_residual_stream_can_be_that_of_the_shared_decoder() -> None:
    torch.manual_seed(0)
    ids = multiplication.equations(7)[:6, :-1]
    ours = multiplication.make_model(TINY | {"normalized_residual": False})
    shared = Decoder(9, **ours.arguments)
    shared.load_state_dict(ours.state_dict())
    assert torch.equal(ours.next_logits(ids), shared.next_logits(ids))


def gradients_of(steps: int) -> list[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]
        for _ in range(steps)
    ]


def changed_by(made: GradientFilter, gradients: list[list[torch.Tensor]]) -> list[np.ndarray]:
    """Each step's gradients after the filter, flat; the weights are 1, 2, 3, ... everywhere."""
    weights = [torch.full(shape, 1.0 + i, dtype=torch.float64) for i, shape in enumerate(SHAPES)]
    flat = []
    for step in gradients:
        held = [gradient.clone() for gradient in step]
        made.change(weights, held)
        flat.append(np.concatenate([gradient.numpy().ravel() for gradient in held]))
    return flat


def flattened(gradients: list[list[torch.Tensor]]) -> list[np.ndarray]:
    return [np.concatenate([g.numpy().ravel() for g in step]) for step in gradients]


WEIGHTS = np.repeat([1.0, 2.0, 3.0], [6, 4, 1])


def test_the_ema_filter_is_its_formula() -> None:
    gradients = gradients_of(30)
    ours = changed_by(EMAFilter(strength=2.0, weight_decay=0.005, decay=0.9), gradients)
    mean = flattened(gradients)[0]
    for gradient, changed in zip(flattened(gradients), ours, strict=True):
        mean = 0.9 * mean + 0.1 * gradient
        np.testing.assert_allclose(changed, gradient + 2 * mean + 0.005 * WEIGHTS, atol=1e-14)


def test_the_ma_filter_is_the_mean_of_a_full_window() -> None:
    gradients = gradients_of(40)
    ours = changed_by(MAFilter(strength=5.0, weight_decay=0.01, window=7), gradients)
    window: deque[np.ndarray] = deque(maxlen=7)
    for gradient, changed in zip(flattened(gradients), ours, strict=True):
        window.append(gradient)
        slow = np.mean(window, axis=0) if len(window) == 7 else 0.0
        np.testing.assert_allclose(changed, gradient + 5 * slow + 0.01 * WEIGHTS, atol=1e-13)


def test_without_strength_and_decay_nothing_changes() -> None:
    gradients = gradients_of(3)
    for ours, given in zip(
        changed_by(GradientFilter(), gradients), flattened(gradients), strict=True
    ):
        np.testing.assert_array_equal(ours, given)


def test_l2_in_the_gradient_is_the_weight_decay_of_adam() -> None:
    """The Trainer's optimizer with the filter walks as torch.optim.Adam(weight_decay=...)."""
    torch.manual_seed(0)
    rows = multiplication.equations(7)
    ours, theirs = multiplication.make_model(TINY), multiplication.make_model(TINY)
    theirs.load_state_dict(ours.state_dict())
    source = multiplication.Epochs(rows, 8, seed=0)
    settings = multiplication.training_settings(TINY | {"max_steps": 12})
    make_trainer(ours, source, callbacks=[GradientFilter(weight_decay=0.05)], **settings).fit()
    adam = torch.optim.Adam(theirs.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.05)
    for step in range(12):
        for group in adam.param_groups:
            group["lr"] = 1e-3 * min(1.0, (step + 1) / 10)
        batch = source.batch(step)
        adam.zero_grad()
        theirs.compute_loss(batch["input_ids"], batch["labels"]).backward()
        adam.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=2e-5)


class Stop(Callback):
    """Ends the process's part of a training as a kill does: without a save."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, trainer: Trainer) -> None:
        if trainer.step == self.step:
            raise RuntimeError("killed")


@pytest.mark.parametrize(
    "made",
    [
        lambda: EMAFilter(strength=2.0, weight_decay=0.005, decay=0.9),
        lambda: MAFilter(strength=5.0, weight_decay=0.01, window=4),
    ],
    ids=["ema", "ma"],
)
def test_a_filtered_training_is_resumed_exactly(made: Any) -> None:
    source = multiplication.Epochs(multiplication.equations(7), 8, seed=0)
    settings = multiplication.training_settings(TINY)
    settings["config"] = settings["config"].model_copy(update={"eval_every_steps": 6})

    def trainer(run: Any, *callbacks: Callback) -> Trainer:
        torch.manual_seed(0)
        model = multiplication.make_model(TINY)
        return make_trainer(model, source, run=run, callbacks=[made(), *callbacks], **settings)

    with start_experiment("whole") as run:
        whole = trainer(run)
        whole.fit()
    with pytest.raises(RuntimeError, match="killed"), start_experiment("cut") as run:
        trainer(run, Stop(9)).fit()
    with start_experiment("cut", resume=True) as run:
        cut = trainer(run)
        cut.resume()
        assert cut.step == 6
        cut.fit()
    for one, other in zip(whole.model.parameters(), cut.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_gradients_are_not_filtered_under_loss_scaling() -> None:
    settings = multiplication.training_settings(TINY)
    source = multiplication.Epochs(multiplication.equations(7), 8, seed=0)
    model = multiplication.make_model(TINY)
    trainer = make_trainer(model, source, callbacks=[GradientFilter()], **settings)
    trainer.set_up()
    trainer.scaler = object()  # type: ignore[assignment]  # only that there is one matters
    with pytest.raises(TrainingError, match="without loss scaling"):
        trainer.fit()


def test_the_projected_gradient_is_orthogonal_and_as_long_as_before() -> None:
    torch.manual_seed(0)
    weight = torch.randn(5, 4, dtype=torch.float64)
    gradient = torch.randn(5, 4, dtype=torch.float64)
    given, values = gradient.clone().numpy().ravel(), weight.numpy().ravel()
    OrthogonalFilter().change([weight], [gradient])
    ours = gradient.numpy().ravel()
    # The residual of the least-squares fit of the gradient by the weights.
    residual = given - values * np.linalg.lstsq(values[:, None], given, rcond=None)[0]
    expected = residual * np.linalg.norm(given) / np.linalg.norm(residual)
    np.testing.assert_allclose(ours, expected, atol=1e-14)
    assert abs(ours @ values) < 1e-13


def test_a_zero_gradient_or_weight_is_no_division_by_zero() -> None:
    for weight, gradient in ((torch.zeros(3), torch.ones(3)), (torch.ones(3), torch.zeros(3))):
        changed = gradient.clone()
        OrthogonalFilter().change([weight], [changed])
        torch.testing.assert_close(changed, gradient)


def test_sums_are_one_hot_codes_of_all_pairs() -> None:
    inputs, targets = addition.sums(5)
    assert inputs.shape == (25, 10) and inputs.sum(dim=1).tolist() == [2.0] * 25
    a, b = inputs[:, :5].argmax(dim=1), inputs[:, 5:].argmax(dim=1)
    assert len({*zip(a.tolist(), b.tolist(), strict=True)}) == 25
    assert torch.equal(targets, (a + b) % 5)


def test_the_mlp_is_that_of_the_paper() -> None:
    shapes = [tuple(p.shape) for p in addition.make_model(113, 200).parameters()]
    assert shapes == [(200, 226), (200, 200), (113, 200)]


SMALL_SUMS = ADDITION | {"modulus": 31, "train_fraction": 0.6, "max_epochs": 300}


@pytest.mark.slow
def test_orthogonal_gradients_grok_a_small_sum_that_plain_adamw_does_not() -> None:
    for name, orthogonal in (("orthogonal", True), ("plain", False)):
        with start_experiment(name) as run:
            addition.train(SMALL_SUMS | {"orthogonal": orthogonal}, 0, run)
        assert not (run.directory / "checkpoints").exists()
    found = query_experiments(
        "SELECT experiment_name, epochs, trained_epochs FROM experiments WHERE split = 'result'"
    ).set_index("experiment_name")
    assert found.loc["orthogonal", "epochs"] == found.loc["orthogonal", "trained_epochs"] < 300
    assert np.isnan(found.loc["plain", "epochs"]) and found.loc["plain", "trained_epochs"] == 300


def test_the_mlp_walks_as_adamw_of_pytorch_on_the_full_batch() -> None:
    config = SMALL_SUMS | {"orthogonal": True, "max_epochs": 12, "weight_decay": 2.0}
    experiment = addition.make_experiment(config, seed=3)
    theirs = copy.deepcopy(experiment.model.network)
    Trainer(experiment, **addition.training_settings(config)).fit()
    torch.manual_seed(3)
    inputs, targets = addition.sums(31)
    chosen = torch.randperm(len(inputs))[: int(0.6 * len(inputs))]
    adamw = torch.optim.AdamW(
        theirs.parameters(), lr=0.01, betas=(0.9, 0.99), eps=1e-25, weight_decay=2.0
    )
    for _ in range(12):
        adamw.zero_grad()
        nn.functional.cross_entropy(theirs(inputs[chosen]), targets[chosen]).backward()
        OrthogonalFilter().change(
            [p.detach() for p in theirs.parameters()], [p.grad for p in theirs.parameters()]
        )
        adamw.step()
    for mine, other in zip(experiment.model.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=2e-5)


def test_a_tiny_decoder_run_is_stored_with_its_accuracies() -> None:
    with start_experiment("tiny") as run:
        multiplication.train(TINY, 0, run)
    rows = query_experiments(
        "SELECT step, accuracy, train_accuracy FROM experiments WHERE split = 'val' ORDER BY step"
    )
    assert rows["step"].tolist() == [5, 10, 15, 20]
    assert rows[["accuracy", "train_accuracy"]].notna().all(axis=None)
    assert not (run.directory / "checkpoints").exists()
    (found,) = query_experiments(
        "SELECT trained_steps FROM experiments WHERE split = 'result'"
    ).to_numpy()
    assert found == 20


def test_a_decoder_that_groks_stops_and_says_when(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grokked, "GROKKED", 0.0)
    with start_experiment("tiny") as run:
        multiplication.train(TINY, 0, run)
    (steps,) = query_experiments("SELECT steps FROM experiments WHERE split = 'result'").to_numpy()
    assert steps == 5


def test_the_reduced_setting_has_names_of_its_own_where_it_differs() -> None:
    def names(full: bool) -> dict[str, str]:
        variants = [*DECODER, *MLP]
        return {v: PaperRun(PAPER, v, setting(v, full)[0], 0).name for v in variants}

    full, reduced = names(full=True), names(full=False)
    assert len(set(full.values())) == len(full)
    assert all(full[variant] != reduced[variant] for variant in DECODER)
    assert all(full[variant] == reduced[variant] for variant in MLP)  # the same, so done once
    assert setting("ema", full=False)[1] == 1 and setting("ema", full=True)[1] >= 5
