"""Masked diffusion: the bound against all masks of a short text, and unmasking."""

from __future__ import annotations

import itertools
import math
import statistics

import pytest
import torch

from common.errors import ModelError
from common.generation.unmasking import ORDERS, unmask
from common.models import Decoder
from common.models.masked_decoder import MaskedDecoder
from common.training.masked_diffusion import (
    MaskedDiffusion,
    _masked,
    _uniform,
    row_weights,
)

SHAPE = {"preset": "llama", "hidden_size": 16, "num_layers": 1, "num_heads": 2}


def model(vocab_size: int = 5, **shape: object) -> MaskedDecoder:
    torch.manual_seed(0)
    built = MaskedDecoder(vocab_size, context_length=16, **{**SHAPE, **shape}).eval()
    for parameter in built.parameters():  # far from uniform predictions
        torch.nn.init.normal_(parameter, std=0.5)
    return built


def exact_bound(built: MaskedDecoder, row: torch.Tensor, predicted: list[int]) -> float:
    """The mean over all sizes l of L / l times the mean over all masks of l tokens, in nats per token."""
    total = 0.0
    for number in range(1, len(predicted) + 1):
        masks = [*itertools.combinations(predicted, number)]
        nats = 0.0
        for mask in masks:
            positions = torch.zeros(1, len(row), dtype=torch.bool)
            positions[0, [*mask]] = True
            inputs = row[None].masked_fill(positions, built.mask_token)
            logits = built(inputs)["logits"][0].double().log_softmax(dim=-1)
            nats -= sum(float(logits[at, row[at]]) for at in mask)
        total += nats / len(masks) * len(predicted) / number
    return total / len(predicted) ** 2


@torch.no_grad()
def test_the_bound_is_the_mean_over_all_masks() -> None:
    built = model()
    row = torch.tensor([1, 4, 2, 0, 3])
    expected = exact_bound(built, row, [1, 2, 3, 4])
    objective = MaskedDiffusion(5, draws=200)
    batch = objective.prepare(row.expand(20, -1), index=7)
    report = objective.report(objective.measure(built, batch))
    error = report["loss_standard_error"]
    assert 0 < error < 0.05 * report["loss"]
    assert report["loss"] == pytest.approx(expected, abs=4 * error)
    assert report["num_tokens"] == 80


@torch.no_grad()
def test_bounds_of_few_and_many_draws_agree_within_their_standard_errors() -> None:
    built, tokens = model(), torch.randint(
        0, 5, (12, 16), generator=torch.Generator().manual_seed(0)
    )
    found = {}
    for draws in (8, 32, 128):
        objective = MaskedDiffusion(5, seed=draws, draws=draws)
        found[draws] = objective.report(objective.measure(built, objective.prepare(tokens, 0)))
    for a, b in itertools.combinations(found.values(), 2):
        error = math.hypot(a["loss_standard_error"], b["loss_standard_error"])
        assert abs(a["loss"] - b["loss"]) < 3 * error
    ratio = found[8]["loss_standard_error"] / found[128]["loss_standard_error"]
    assert ratio == pytest.approx(4, rel=0.3)


def test_the_training_loss_with_the_weight_of_the_bound_is_the_bound() -> None:
    built = model()
    row = torch.tensor([1, 4, 2, 0, 3])
    objective = MaskedDiffusion(5, weight_power=1)
    with torch.no_grad():
        losses = [
            float(objective.loss(built, objective.prepare(row.expand(16, -1), index)))
            for index in range(400)
        ]
        expected = exact_bound(built, row, [1, 2, 3, 4])
    mean, deviation = statistics.mean(losses), statistics.stdev(losses)
    assert mean == pytest.approx(expected, abs=4 * deviation / math.sqrt(len(losses)))
    assert deviation < 0.2 * mean


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_the_loss_is_the_weighted_nats_of_the_masked_tokens(power: float) -> None:
    built = model()
    objective = MaskedDiffusion(5, weight_power=power)
    batch = objective.prepare(torch.randint(0, 5, (6, 16)), 3)
    masked = _masked(built, batch, 0, batch["level"])
    logits = built(masked.input_ids)["logits"].double().log_softmax(dim=-1)
    expected = 0.0
    for row, labels in enumerate(masked.labels):
        places = (labels >= 0).nonzero()[:, 0]
        nats = -sum(float(logits[row, at, labels[at]].detach()) for at in places)
        expected += (2 - power) * (15 / len(places)) ** power * nats / (6 * 15)
    loss = objective.loss(built, batch)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in built.parameters())


def test_a_constant_loss_keeps_its_value_under_every_weight() -> None:
    size = torch.full((1000,), 1000)
    for power in (0.0, 0.3, 0.5, 1.0):
        number = torch.arange(1, 1001)
        mean = float((row_weights(number, size, power).double() * number / size).mean())
        assert mean == pytest.approx(1, rel=2e-3)


def test_levels_of_a_batch_are_evenly_spaced_from_a_random_start() -> None:
    objective, tokens = MaskedDiffusion(5), torch.zeros(12, 13, dtype=torch.int64)
    starts = []
    for index in range(200):
        batch = objective.prepare(tokens, index)
        counts = (_masked(model(), batch, 0, batch["level"]).labels >= 0).sum(dim=1)
        assert sorted(counts.tolist()) == [*range(1, 13)]
        starts.append(float(batch["level"][0]))
    mean, expected = statistics.mean(starts), 1 / math.sqrt(12 * len(starts))
    assert min(starts) >= 0 and max(starts) < 1 and abs(mean - 0.5) < 4 * expected


def test_masks_follow_from_seed_index_and_row() -> None:
    built, tokens = model(), torch.randint(0, 5, (6, 16))

    def masks(seed: int, index: int, rows: slice = slice(None)) -> torch.Tensor:
        batch = MaskedDiffusion(5, seed=seed).prepare(tokens, index)
        part = {name: value[rows] for name, value in batch.items()}
        return _masked(built, part, 0, part["level"]).labels >= 0

    assert torch.equal(masks(0, 1), masks(0, 1))
    assert torch.equal(masks(0, 1, slice(2, 4)), masks(0, 1)[2:4])  # a process has some of the rows
    assert not torch.equal(masks(0, 1), masks(0, 2)) and not torch.equal(masks(0, 1), masks(1, 1))
    assert not masks(0, 1)[:, 0].any() and masks(0, 1).any(dim=1).all()


def test_the_number_of_masks_is_uniform() -> None:
    batch = MaskedDiffusion(5).prepare(torch.zeros(20_000, 9, dtype=torch.int64), 0)
    counts = torch.bincount((_masked(model(), batch, 0).labels >= 0).sum(dim=1), minlength=9)
    assert counts[0] == 0
    assert (counts[1:] - 2500).abs().max() < 5 * math.sqrt(2500)
    noise = _uniform(batch["noise"], 1, 3)
    assert abs(float(torch.corrcoef(noise.T)[0, 1])) < 0.03


def test_what_follows_the_last_label_is_hidden() -> None:
    """Padding repeats a token of the text, which a model that sees later tokens would read."""
    objective, built = MaskedDiffusion(5), model()
    tokens = torch.randint(0, 5, (2, 8))
    labels = tokens.clone()
    labels[0, 5:] = -100
    masked = _masked(built, objective.prepare({"input_ids": tokens, "labels": labels}, 0), 0)
    assert (masked.input_ids[0, 5:] == built.mask_token).all()
    assert objective.count(objective.prepare({"input_ids": tokens, "labels": labels}, 0)) == 4 + 7


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("steps", [1, 3, 7, None])
@pytest.mark.parametrize("block_size", [None, 2, 3])
def test_unmasking_keeps_what_is_given_and_fills_in_the_rest(
    order: str, steps: int | None, block_size: int | None
) -> None:
    built = model()
    tokens = torch.full((3, 12), built.mask_token)
    tokens[:, :3], tokens[:, 10:] = torch.tensor([1, 2, 3]), torch.tensor([4, 0])
    options = {"order": order, "steps": steps, "block_size": block_size, "seed": 1}
    found = unmask(built, tokens, **options)  # type: ignore[arg-type]  # of several types
    given = tokens != built.mask_token
    assert torch.equal(found.tokens[given], tokens[given])
    assert (found.tokens < 5).all() and (found.steps[given] == -1).all()
    assert (found.steps[~given] >= 0).all() and ((found.confidence > 0) | given).all()
    if steps is not None and block_size is None:
        assert found.steps.max() == steps - 1
    if block_size is not None:  # a later block begins when the one before is complete
        for row in found.steps[:, 3:10]:
            blocks = row.split(block_size)
            assert all(a.max() < b.min() for a, b in itertools.pairwise(blocks))
    again = unmask(built, tokens, **options)  # type: ignore[arg-type]  # as above
    assert torch.equal(found.tokens, again.tokens)


def test_the_most_confident_token_comes_first() -> None:
    built = model()
    tokens = torch.full((1, 8), built.mask_token)
    tokens[0, 0] = 2
    found = unmask(built, tokens, temperature=0)
    current = tokens.clone()
    for step in range(7):
        probabilities = built(current)["logits"].softmax(dim=-1)
        best, choice = probabilities.max(dim=-1)
        at = int(best.masked_fill(current != built.mask_token, -1).argmax())
        assert int(found.steps[0, at]) == step
        assert float(found.confidence[0, at]) == pytest.approx(best[0, at].item(), rel=1e-5)
        current[0, at] = choice[0, at]
    assert torch.equal(found.tokens, current)


def test_a_masked_decoder_does_not_pretend_to_predict_the_next_token() -> None:
    built, ids = model(), torch.zeros(1, 4, dtype=torch.int64)
    for call in (
        lambda: built(ids, labels=ids),
        lambda: built.compute_loss(ids, ids),
        lambda: built.next_logits(ids),
        lambda: MaskedDiffusion(5).loss(Decoder(5, **SHAPE), MaskedDiffusion(5).prepare(ids, 0)),
    ):
        with pytest.raises(ModelError):
            call()


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"block_size": 0},
        {"order": "up"},
        {"temperature": -1.0},
        {"top_k": 0},
        {"top_p": 2.0},
    ],
)
@pytest.mark.parametrize("suffix", [None, torch.tensor([[1, 2]])])
def test_wrong_options_of_generation_are_errors(
    wrong: dict[str, object], suffix: torch.Tensor | None
) -> None:
    with pytest.raises(ModelError, match=next(iter(wrong))):
        model().generate(torch.tensor([[1]]), 4, suffix=suffix, **wrong)


def test_rare_tokens_are_written_as_often_as_the_model_predicts_them() -> None:
    """Each position is 0 with a probability of 0.75, whatever the others are: confidence must not choose by the
    token that was drawn."""

    class Coins(MaskedDecoder):
        def logits_at(self, input_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
            return torch.tensor([0.75, 0.25]).log().expand(int(positions.sum()), 2)

    coins = Coins(2, context_length=16, **SHAPE)
    for order in ORDERS:
        rows = coins.generate(torch.tensor([[0]]), 15, num_sequences=400, order=order, seed=3)
        assert abs(float(rows[:, 1:].float().mean()) - 0.25) < 4 * math.sqrt(0.1875 / 6000)


def test_a_causal_masked_decoder_is_an_error() -> None:
    with pytest.raises(ModelError, match="not causal"):
        MaskedDecoder(5, causal=True, **SHAPE)
    assert not MaskedDecoder(5, causal=False, **SHAPE).config.causal


def test_tokens_see_both_sides() -> None:
    built, ids = model(), torch.randint(0, 5, (1, 6))
    other = ids.clone()
    other[0, 5] = (other[0, 5] + 1) % 5
    assert not torch.allclose(built(ids)["logits"][0, 0], built(other)["logits"][0, 0])


def test_a_checkpoint_brings_the_mask_back(tmp_path: object) -> None:
    built, ids = model(), torch.tensor([[1, 5, 2]])
    built.save_checkpoint(f"{tmp_path}/saved")
    again = MaskedDecoder.load_checkpoint(f"{tmp_path}/saved")
    assert torch.equal(again(ids)["logits"], built(ids)["logits"])
