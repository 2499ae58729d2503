"""Texts drawn from the model at every evaluation, kept in the run's samples.jsonl."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from common.data.tokenizers import Tokenizer
from common.training.callbacks.base import Callback
from common.training.config import SampleConfig
from common.utils.files import write_text_atomic
from common.utils.seeding import derive_seed

if TYPE_CHECKING:
    from common.training.trainer import Trainer


class Samples(Callback):
    """Draws from generators of its own, so that training is the same with and without samples.

    Each text has one, seeded by the seed of the run, the step and the index of the prompt.

    `path` None: nothing is drawn; another process does.
    """

    def __init__(
        self, path: Path | None, tokenizer: Tokenizer, config: SampleConfig, seed: int
    ) -> None:
        self.path = path
        self.tokenizer = tokenizer
        self.config = config
        self.seed = seed
        self.latest: list[str] = []
        self._drawn_at: int | None = None

    def on_train_start(self, trainer: Trainer) -> None:
        """Forget the samples that a lost process drew at or after the step we start from."""
        if self.path is not None and self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _step(line) < trainer.step]
            write_text_atomic(self.path, "".join(f"{line}\n" for line in kept))

    def on_evaluate(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        if self.path is None:
            return
        if trainer.step == self._drawn_at:
            return  # training was stopped by the evaluation before this one: the same weights
        self._drawn_at = trainer.step
        self.latest = trainer.evaluator.generate_samples(
            self.config.prompts,
            self.tokenizer,
            max_new_tokens=self.config.max_new_tokens,
            temperature=self.config.temperature,
            top_k=self.config.top_k,
            top_p=self.config.top_p,
            seed=derive_seed(self.seed, trainer.step),
        )
        with self.path.open("a", encoding="utf-8") as file:
            for prompt, text in zip(self.config.prompts, self.latest, strict=True):
                entry = {"step": trainer.step, "prompt": prompt, "text": text}
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except ValueError:
        return float("inf")  # the half line of a killed process
