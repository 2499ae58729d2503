"""A training of a fraction of a second, for the tests of what happens around one."""

from __future__ import annotations

import torch

from common.data.batch import Batch
from common.experiments.run import Run
from common.models import Decoder
from common.training import Callback, TrainingConfig
from tests.trainers import make_trainer

VOCAB_SIZE = 11
CONTEXT_LENGTH = 8


class Batches:
    def batch(self, index: int) -> Batch:
        generator = torch.Generator().manual_seed(index)
        ids = torch.randint(0, VOCAB_SIZE, (2, CONTEXT_LENGTH), generator=generator)
        return {"input_ids": ids, "labels": ids}


def tiny_model() -> Decoder:
    torch.manual_seed(0)
    return Decoder(
        VOCAB_SIZE,
        num_layers=1,
        num_heads=2,
        hidden_size=8,
        context_length=CONTEXT_LENGTH,
        dropout=0.4,  # draws from the global generator, which no callback may touch
    )


def train(
    *callbacks: Callback,
    run: Run | None = None,
    steps: int = 6,
    resume: bool = False,
    quick: bool = False,
) -> Decoder:
    """Logs every step, saves and evaluates every second one; `quick`: on other batches than at the end."""
    trainer = make_trainer(
        tiny_model(),
        Batches(),
        TrainingConfig(max_steps=steps, eval_every_steps=2, log_every_steps=1, device="cpu"),
        val_data=[Batches().batch(100)],
        quick_val_data=[Batches().batch(101)] if quick else None,
        callbacks=callbacks,
        run=run,
    )
    if resume:
        trainer.resume()
    trainer.fit()
    return trainer.model  # type: ignore[return-value]  # it is the Decoder from above


def same_weights(one: Decoder, other: Decoder) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(mine, its) for mine, its in pairs)
