"""Sample texts at every evaluation, into the run's samples.jsonl."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.data.tokenizers import Tokenizer
from common.training.callbacks.base import Callback
from common.training.config import SampleConfig
from common.utils.files import atomic_path, named_in_errors
from common.utils.logging import get_logger
from common.utils.seeding import derive_seed

if TYPE_CHECKING:
    from common.training.trainer import Trainer

log = get_logger("samples")


class Samples(Callback):
    """Samples with its own generators, so that training is the same with and without samples.

    Each text has a generator, seeded by the seed of the run, the step and the index of the prompt.
    Only rank 0 samples, and only with a run or a `path`.

    Args:
        path: output file; None: `samples.jsonl` in the folder of the run.
    """

    def __init__(
        self, tokenizer: Tokenizer, config: SampleConfig, seed: int, path: Path | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.config = config
        self.seed = seed
        self.path = path
        self.latest: list[str] = []
        self._drawn_at: int | None = None

    def on_train_start(self, trainer: Trainer) -> None:
        """Drop the samples that a killed process drew at or after the step we start from."""
        if self.path is None and trainer.run is not None:
            self.path = trainer.run.directory / "samples.jsonl"
        if self.path is not None and self.path.exists():
            content = self.path.read_bytes()
            # Split at b"\n" only: a text may contain other line separators, such as U+2028.
            kept = [line for line in content.split(b"\n") if _step(line) < trainer.step]
            if (wanted := b"".join(line + b"\n" for line in kept)) != content:
                with atomic_path(self.path) as temporary:
                    temporary.write_bytes(wanted)

    def on_evaluate(self, trainer: Trainer, metrics: Mapping[str, float], split: str) -> None:
        if self.path is None:
            return
        if trainer.step == self._drawn_at:
            return  # sampled at the quick evaluation: the same weights
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
        entries = [
            {"step": trainer.step, "prompt": prompt, "text": text}
            for prompt, text in zip(self.config.prompts, self.latest, strict=True)
        ]
        try:
            _append(self.path, entries)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            # As for rows: a full disk does not end a training of days.
            log.warning(f"{self.path}: {error.strerror}; the samples of this step are not saved")


def _append(path: Path, entries: list[dict[str, Any]]) -> None:
    with named_in_errors(path), path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # half a line, after a full disk
                file.write(b"\n")
        for entry in entries:
            file.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")


def _step(line: bytes) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # half a line (killed process, full disk), or no sample
