"""How good a model is: token-weighted loss, perplexity, bits per byte."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from common.data.batch import IGNORE_INDEX, count_labels, to_batch
from common.errors import DataError
from common.models.base import BaseLanguageModel
from common.models.loss import next_token_loss
from common.training.distributed import DistributedContext
from common.training.precision import autocast, matmul_precision
from common.utils.progress import with_progress
from common.utils.seeding import derive_seed

if TYPE_CHECKING:
    import pandas as pd


class Evaluator:
    """Judges a model on batches {"input_ids", "labels"} of (batch, time) int64 (see data/batch.py).

    Without labels they are the input ids; padding that an `attention_mask` names never counts.

    Args:
        model: a BaseLanguageModel, or any module that is called and answers like a Hugging Face one.
        device: where to compute; None leaves the model where it is.
        token_bytes: (vocab_size,) bytes per token (`Tokenizer.token_bytes`), for bits per byte.
        precision: see training/precision.py.
        context: of the processes that share the work; each computes some rows of every batch.
    """

    def __init__(
        self,
        model: nn.Module,
        device: str | torch.device | None = None,
        *,
        token_bytes: Any = None,
        precision: str = "fp32",
        context: DistributedContext | None = None,
    ) -> None:
        self.model = model if device is None else model.to(device)
        self.device = next(model.parameters()).device
        self._token_bytes = None if token_bytes is None else torch.as_tensor(np.array(token_bytes))
        self.precision = precision
        self._context = context or DistributedContext(device=self.device)

    @torch.no_grad()
    def evaluate(self, dataloader: Iterable[Any], *, accuracy: bool = False) -> dict[str, float]:
        """Mean over all predicted tokens, whatever batch they came in.

        Args:
            accuracy: also the share of tokens that are the most likely one (top-1). It needs the
                (batch, time, vocab_size) logits, which the loss alone does not keep.
        Returns: loss (nats per token), perplexity (its exponential), num_tokens, and with
        `token_bytes` bits_per_byte (0 bytes for special tokens, whose cost counts).
        Raises DataError when there is nothing to predict. See prediction_metrics.py for more.
        """
        was_training = self.model.training
        self.model.eval()
        vocab_size = self.model.vocab_size if isinstance(self.model, BaseLanguageModel) else None
        total_nats, num_tokens, num_correct, num_bytes = 0.0, 0, 0, 0
        try:
            for given in with_progress(dataloader, "evaluating"):
                batch = self._context.rows(to_batch(given, vocab_size))
                labels = batch["labels"]
                count = count_labels(labels)
                if count == 0 and self._context.world_size == 1:
                    continue
                if accuracy:
                    mean_loss, correct = self._loss_and_correct(batch["input_ids"], labels)
                    num_correct += correct
                else:
                    mean_loss = self._mean_loss(batch["input_ids"], labels)
                total_nats += mean_loss * count
                num_tokens += count
                if self._token_bytes is not None:
                    targets = labels[:, 1:].cpu()
                    predicted = targets[targets != IGNORE_INDEX]
                    num_bytes += int(self._token_bytes[predicted].sum())
        finally:
            self.model.train(was_training)
        sums = torch.tensor([total_nats, num_tokens, num_correct, num_bytes], dtype=torch.float64)
        total_nats, num_tokens, num_correct, num_bytes = self._context.sum(sums).tolist()
        if num_tokens == 0:
            raise DataError("there is nothing to evaluate: no batch has a label to predict")
        loss = total_nats / num_tokens
        metrics = {
            "loss": loss,
            "perplexity": math.exp(loss) if loss < 700 else math.inf,
            "num_tokens": int(num_tokens),
        }
        if accuracy:
            metrics["accuracy"] = num_correct / num_tokens
        if num_bytes:
            metrics["bits_per_byte"] = total_nats / math.log(2) / num_bytes
        return metrics

    def _mean_loss(self, input_ids: torch.Tensor, labels: torch.Tensor) -> float:
        input_ids, labels = input_ids.to(self.device), labels.to(self.device)
        with matmul_precision(self.precision), autocast(self.precision, self.device):
            if isinstance(self.model, BaseLanguageModel):
                return float(self.model.compute_loss(input_ids, labels))
            return float(self.model(input_ids, labels=labels)["loss"])

    def _loss_and_correct(self, input_ids: torch.Tensor, labels: torch.Tensor) -> tuple[float, int]:
        input_ids, labels = input_ids.to(self.device), labels.to(self.device)
        with matmul_precision(self.precision), autocast(self.precision, self.device):
            logits = self.model(input_ids)["logits"]
        correct = logits[:, :-1].argmax(dim=-1) == labels[:, 1:]  # no token has the id -100
        return float(next_token_loss(logits, labels)), int(correct.sum())

    def evaluate_sets(
        self,
        dataloaders: Mapping[str, Iterable[Any]],
        *,
        accuracy: bool = False,
    ) -> dict[str, dict[str, float]]:
        """`evaluate` on several validation sets: {"val": ..., "other": ...} -> metrics by set.

        The name of a set is its split in `create_metrics_dataframe`. A DataError names the set.
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
        """Continue each prompt, up to `max_length` tokens in all; returns prompts with continuations.

        Args:
            tokenizer: has encode and decode; a text ends at its end-of-text token.
            prompts: an empty one begins at the start of a document.
            max_new_tokens: after each prompt, whatever its length; takes the place of `max_length`.
            seed: each prompt has a generator of its own, seeded by `seed` and the index of the
                prompt; None draws from the global generator.
        """
        if not isinstance(self.model, BaseLanguageModel):
            raise TypeError("generate_samples needs a BaseLanguageModel")
        end = getattr(tokenizer, "end_of_text", None)
        texts = []
        for index, prompt in enumerate(prompts):
            ids = [int(i) for i in tokenizer.encode(prompt)] or [end if end is not None else 0]
            new = max(0, max_length - len(ids)) if max_new_tokens is None else max_new_tokens
            output = self.model.generate(
                torch.tensor([ids]),
                new,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                stop_tokens=[] if end is None else [end],
                seed=None if seed is None else derive_seed(seed, index),
            )[0].tolist()
            texts.append(tokenizer.decode([i for i in output if i != end]))
        return texts

    @staticmethod
    def create_metrics_dataframe(
        metrics: Mapping[str, float], epoch: float, split: str
    ) -> pd.DataFrame:
        """One row with `epoch`, `split` and the metrics, as `save_experiment` takes it."""
        import pandas as pd

        return pd.DataFrame([{"epoch": epoch, "split": split, **metrics}])


def compute_perplexity(
    model: nn.Module,
    dataloader: Iterable[Any],
    device: str | torch.device | None = None,
) -> float:
    """exp of the mean loss per predicted token (in nats) over `dataloader`."""
    return Evaluator(model, device).evaluate(dataloader)["perplexity"]
