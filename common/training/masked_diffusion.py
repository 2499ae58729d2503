"""Masked diffusion: the objective of models that fill in masked tokens, a bound on the loss of a text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from common.data.batch import IGNORE_INDEX, Batch
from common.errors import ModelError
from common.models.loss import is_padding
from common.models.masked_decoder import MaskedDecoder
from common.training.objective import NextToken
from common.utils.seeding import derive_seed


class MaskedDiffusion(NextToken):
    """Fill in l of the L tokens of a row, drawn at random, l uniform from 1 to L, with the weight L / l.

    The mean is an upper bound of -log p(row), in nats (Nie et al. 2025, "Large Language Diffusion
    Models", eq. 6; Sahoo et al. 2024, "Simple and Effective Masked Diffusion Language Models", section
    3.3). A number of tokens instead of a rate lowers its variance. The first token of a row is never
    masked, so that exactly the tokens of next-token prediction are covered and bits per byte compare.

    Evaluations measure this bound. Training weights rows by (L / l)^weight_power: any weight of l has its
    minimum at the same predictions, but a row with one mask has the gradient of one token, and with the
    weight L / l it counts as much as one with L masks. 0 weights all masked tokens equally (BERT, MaskGIT;
    Chang et al. 2022), 1 is the bound. After 400 steps on stories (one seed) the bound is 1.33 nats per token
    with 0, 1.24 with 0.5, and 2.11 with 1; projects/diffusion/README.md has more.

    Args:
        vocab_size, token_bytes: as in NextToken.
        seed: of the masks, which follow from it and the index of the batch.
        draws: masks per row of an evaluation; the standard error is that of the draws, and needs 2.
        weight_power: from 0 to 1.
    """

    is_bound = True

    def __init__(
        self,
        vocab_size: int | None = None,
        token_bytes: Any = None,
        *,
        seed: int = 0,
        draws: int = 4,
        weight_power: float = 0.5,
    ) -> None:
        super().__init__(vocab_size, token_bytes)
        self.seed, self.draws, self.weight_power = seed, draws, weight_power

    def prepare(self, given: Any, index: int) -> Batch:
        """See NextToken.prepare; adds "noise", (batch,) int64, the seed of each row, and "level", (batch,)
        float64 in [0, 1), its share of masks in training.

        Levels are evenly spaced over the batch from a random start (Kingma et al. 2021, "Variational
        Diffusion Models", appendix I.1): each is uniform, and every batch has easy and hard rows.
        """
        batch = super().prepare(given, index)
        labels = batch["labels"].clone()
        labels[:, 0] = IGNORE_INDEX
        rows = torch.arange(len(labels), device=labels.device)
        noise = _mixed(rows + derive_seed(self.seed, index))
        start = derive_seed(self.seed, index, 1) * 2.0**-63
        level = (start + rows.double() / len(rows)) % 1.0
        return {"input_ids": batch["input_ids"], "labels": labels, "noise": noise, "level": level}

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Mean weighted nats per predicted token, by one draw for each row."""
        masked = _masked(model, batch, 0, batch["level"])
        weights = row_weights(masked.number, masked.size, self.weight_power)
        loss: torch.Tensor = masked.model.masked_loss(masked.input_ids, masked.labels, weights)
        return loss / max(1, self.count(batch))

    def measure(self, model: nn.Module, batch: Batch) -> dict[str, float]:
        """Sums of the bound, whose draws are independent, so that their standard error is known."""
        drawn = torch.stack([_nats(_masked(model, batch, draw)) for draw in range(self.draws)])
        sums = {"targets": float(self.count(batch)), "loss": float(drawn.mean(dim=0).sum())}
        if self.draws > 1:
            sums["variance"] = float(drawn.var(dim=0).sum() / self.draws)
        if self.token_bytes is not None:
            targets = batch["labels"].cpu()
            sums["bytes"] = float(self.token_bytes[targets[targets != IGNORE_INDEX]].sum())
        return sums

    def loss_metrics(self, loss: float) -> dict[str, float]:
        return {"loss": loss, "perplexity_bound": math.exp(loss) if loss < 700 else math.inf}

    def report(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Loss (a bound, nats per token), its standard error, num_tokens, bits_per_byte_bound."""
        metrics = super().report(sums)
        if "bits_per_byte" in metrics:
            metrics["bits_per_byte_bound"] = metrics.pop("bits_per_byte")
        if "variance" in sums:
            metrics["loss_standard_error"] = math.sqrt(sums["variance"]) / sums["targets"]
        return metrics

    def describe(self, metrics: Mapping[str, float]) -> str:
        """Format the metrics of an evaluation as one line, bounds with <=."""
        parts = [f"loss <= {metrics['loss']:.4f}"]
        if "loss_standard_error" in metrics:
            parts[0] += f" (standard error {metrics['loss_standard_error']:.4f})"
        parts[0] += " nats per token"
        if "bits_per_byte_bound" in metrics:
            parts.append(f"<= {metrics['bits_per_byte_bound']:.4f} bits per byte")
        return f"{', '.join(parts)} ({int(metrics['num_tokens']):,} tokens)"


def row_weights(number: torch.Tensor, size: torch.Tensor, power: float) -> torch.Tensor:
    """(L / l)^power of rows with l = `number` of L = `size` tokens masked: (batch,) int64 -> (batch,) float32.

    Times 2 - power: a loss that is the same for all l then keeps its value for large L.
    """
    rate = number.clamp(min=1) / size.clamp(min=1)
    return (2.0 - power) * rate**-power


class _Masked:
    """A batch with some tokens masked: inputs, labels of the masked tokens, their number in each row and
    that of all tokens to predict.

    `level`: (batch,) in [0, 1), sets the number of masks; None: drawn by `draw`, as their places are.
    """

    def __init__(
        self, model: MaskedDecoder, batch: Batch, draw: int, level: torch.Tensor | None
    ) -> None:
        self.model, labels = model, batch["labels"]
        predicted = labels != IGNORE_INDEX
        self.size = predicted.sum(dim=1)
        noise = _uniform(batch["noise"], draw, 1 + labels.shape[1])
        level = noise[:, 0] if level is None else level
        self.number = ((level * self.size).floor().long() + 1).clamp(max=self.size)
        ranks = noise[:, 1:].masked_fill(~predicted, math.inf).argsort(dim=1).argsort(dim=1)
        masked = ranks < self.number[:, None]
        hidden = masked | is_padding(labels)  # padding repeats a token, which the model would see
        self.input_ids = batch["input_ids"].masked_fill(hidden, model.mask_token)
        self.labels = labels.masked_fill(~masked, IGNORE_INDEX)


def _masked(
    model: nn.Module, batch: Batch, draw: int, level: torch.Tensor | None = None
) -> _Masked:
    if not isinstance(model, MaskedDecoder):
        raise ModelError(
            f"masked diffusion trains a MaskedDecoder, not a {type(model).__name__}",
            "build the model with MaskedDecoder(vocab_size, ...)",
        )
    return _Masked(model, batch, draw, level)


def _nats(masked: _Masked) -> torch.Tensor:
    """(batch,) float64: weight times the nats of the masked tokens of each row."""
    at = masked.labels != IGNORE_INDEX
    logits = masked.model.logits_at(masked.input_ids, at)
    nats = F.cross_entropy(logits.float(), masked.labels[at], reduction="none").double()
    rows = torch.arange(len(at), device=at.device)[:, None].expand_as(at)[at]
    return torch.zeros(len(at), dtype=nats.dtype, device=nats.device).index_add(0, rows, nats) * (
        row_weights(masked.number, masked.size, 1.0)
    )


def _mixed(x: torch.Tensor) -> torch.Tensor:
    """SplitMix64 (Steele et al. 2014, "Fast Splittable Pseudorandom Number Generators", figure 17) of int64."""
    x = x * -7046029254386353131  # 0x9e3779b97f4a7c15, as all products here modulo 2^64
    x = (x ^ _shifted(x, 30)) * -4658895280553007687  # 0xbf58476d1ce4e5b9
    x = (x ^ _shifted(x, 27)) * -7723592293110705685  # 0x94d049bb133111eb
    return x ^ _shifted(x, 31)


def _shifted(x: torch.Tensor, by: int) -> torch.Tensor:
    """x >> by without copies of the sign."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def _uniform(seeds: torch.Tensor, draw: int, count: int) -> torch.Tensor:
    """`count` numbers in [0, 1) of each seed: (batch,) int64 -> (batch, count) float64, the same on all devices."""
    numbers = torch.arange(draw * count, (draw + 1) * count, device=seeds.device)
    return _shifted(_mixed(seeds[:, None] ^ _mixed(numbers)), 11).double() * 2.0**-53
