"""Evaluate a model: the loss over all targets of a split, and other metrics of the objective."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from common.data.batch import Batch, to_device
from common.errors import DataError
from common.generation.text import prompt_ids, stream_text
from common.models.base import BaseLanguageModel
from common.training.distributed import DistributedContext
from common.training.objective import NextToken, Objective
from common.training.parallel import own_rows
from common.training.precision import autocast, matmul_precision
from common.utils.progress import with_progress
from common.utils.seeding import derive_seed

if TYPE_CHECKING:
    import pandas as pd


class Evaluator:
    """Evaluates a model on batches of its objective.

    The default objective is the next token, with batches {"input_ids", "labels"} of (batch, time)
    int64 (see data/batch.py). Labels default to the input ids, and padding by an `attention_mask`
    is ignored.

    Args:
        model: a BaseModel, or any module with the interface of a Hugging Face model.
        device: where to compute; None: the model's device.
        objective: what is predicted and reported; None: the next token.
        token_bytes: (vocab_size,) bytes per token (`Tokenizer.token_bytes`), for bits per byte
            without an objective.
        precision: see training/precision.py.
        context: distributed context; each process computes some rows of every batch.
    """

    def __init__(
        self,
        model: nn.Module,
        device: str | torch.device | None = None,
        *,
        objective: Objective | None = None,
        token_bytes: Any = None,
        precision: str = "fp32",
        context: DistributedContext | None = None,
    ) -> None:
        self.model = model if device is None else model.to(device)
        self.device = next(model.parameters()).device
        vocab_size = model.vocab_size if isinstance(model, BaseLanguageModel) else None
        self.objective = objective or NextToken(vocab_size, token_bytes)
        self.precision = precision
        self._context = context or DistributedContext(device=self.device)

    @torch.no_grad()
    def evaluate(self, dataloader: Iterable[Any], *, accuracy: bool = False) -> dict[str, float]:
        """Compute means over all targets, independent of how they are batched.

        Args:
            accuracy: also compute top-1 accuracy of next-token prediction, which needs the logits
                of all tokens.
        Returns: `objective.report`; for text: loss (nats per token), perplexity, num_tokens, and
        with `token_bytes` bits_per_byte.
        Raises DataError if no batch has a label. See prediction_metrics.py for more metrics.
        """
        objective = self.objective
        if accuracy and isinstance(objective, NextToken):
            objective = NextToken(objective.vocab_size, objective.token_bytes, accuracy=True)
        was_training = self.model.training
        self.model.eval()
        sums: dict[str, float] = {}
        try:
            for index, given in enumerate(with_progress(dataloader, "evaluating")):
                batch = objective.prepare(given, index)
                for name, value in self._measure(objective, batch).items():
                    sums[name] = sums.get(name, 0.0) + value
        finally:
            self.model.train(was_training)
        total = self._context.sum(torch.tensor(list(sums.values()), dtype=torch.float64))
        sums = dict(zip(sums, total.tolist(), strict=True)) or {"targets": 0.0}
        return objective.report(sums)

    def _measure(self, objective: Objective, batch: Batch) -> dict[str, float]:
        """The sums of the rows of `batch` that this process computes."""
        rows, count = own_rows(batch, objective, self._context)
        if count == 0 and self._context.world_size == 1:
            return {}
        with matmul_precision(self.precision), autocast(self.precision, self.device):
            measured = objective.measure(self.model, to_device(rows, self.device))
        return measured if count else dict.fromkeys(measured, 0.0)

    def evaluate_sets(
        self,
        dataloaders: Mapping[str, Iterable[Any]],
        *,
        accuracy: bool = False,
    ) -> dict[str, dict[str, float]]:
        """`evaluate` on several validation sets: {"val": ..., "other": ...} -> metrics by set.

        Pass the name of a set as `split` to `create_metrics_dataframe`. A DataError names the set.
        """
        metrics = {}
        for name, dataloader in dataloaders.items():
            try:
                metrics[name] = self.evaluate(dataloader, accuracy=accuracy)
            except DataError as error:
                raise DataError(f"'{name}': {error.message}", error.hint) from error
        return metrics

    def generate_samples(
        self,
        prompts: Sequence[str],
        tokenizer: Any,
        max_length: int = 100,
        *,
        max_new_tokens: int | None = None,
        temperature: float = 0.8,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = 0,
    ) -> list[str]:
        """Continue each prompt up to `max_length` tokens in total; return prompts with continuations.

        Args:
            tokenizer: has encode and decode; generation stops at its end-of-text token.
            prompts: an empty prompt starts a new document.
            max_new_tokens: number of tokens after each prompt, in place of `max_length`.
            seed: each prompt has its own generator, seeded by `seed` and the index of the prompt;
                None uses the global generator.
        """
        if not isinstance(self.model, BaseLanguageModel):
            raise TypeError("generate_samples needs a BaseLanguageModel")
        texts = []
        for index, prompt in enumerate(prompts):
            ids = prompt_ids(tokenizer, prompt)
            new = max(0, max_length - len(ids)) if max_new_tokens is None else max_new_tokens
            continuation = stream_text(
                self.model,
                tokenizer,
                prompt,
                max_new_tokens=new,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                seed=None if seed is None else derive_seed(seed, index),
            )
            end = getattr(tokenizer, "end_of_text", None)
            begun = tokenizer.decode([token for token in ids if token != end])
            texts.append(begun + "".join(continuation))
        return texts

    @staticmethod
    def create_metrics_dataframe(
        metrics: Mapping[str, float], epoch: float, split: str
    ) -> pd.DataFrame:
        """Return one row with `epoch`, `split` and the metrics, for `save_experiment`."""
        import pandas as pd

        return pd.DataFrame([{"epoch": epoch, "split": split, **metrics}])


def compute_perplexity(
    model: nn.Module,
    dataloader: Iterable[Any],
    device: str | torch.device | None = None,
) -> float:
    """Compute exp(mean loss in nats per predicted token) over `dataloader`."""
    return Evaluator(model, device).evaluate(dataloader)["perplexity"]
