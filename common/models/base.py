"""The contract of every language model here: forward, generate, save and load."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from common.errors import ModelError
from common.generation.fast_copy import make_twin
from common.generation.sampling import sample_next
from common.generation.session import GrowingText
from common.models.checkpoint import load_model, save_model

M = TypeVar("M", bound="BaseLanguageModel")
Model = TypeVar("Model", bound="BaseLanguageModel", covariant=True)


class _LoadCheckpoint(Protocol[Model]):
    def __call__(self, path: str | Path, device: str | torch.device = "cpu") -> Model: ...


class _ClassOrInstanceMethod:
    """`Model.load_checkpoint(path)` builds a model, `model.load_checkpoint(path)` fills this one.

    Both are what people write; with a plain method or classmethod one of them would silently do
    nothing to the model at hand.
    """

    def __get__(self, instance: M | None, owner: type[M]) -> _LoadCheckpoint[M]:
        return partial(load_model, instance if instance is not None else owner)


class BaseLanguageModel(nn.Module):
    """Subclass this, keep the keyword arguments JSON-like, and write `forward`.

    Args:
        vocab_size: number of tokens.
        **kwargs: whatever the subclass needs to be built again; saved with every checkpoint.
    """

    # Keep only the inputs of each block for the backward pass and compute the rest again (Chen et
    # al. 2016, "Training Deep Nets with Sublinear Memory Cost"); for models that say they can.
    activation_checkpointing = False
    supports_activation_checkpointing = False
    # The methods besides `forward` that compute with the weights and are called from outside. Where
    # each process has a part of the weights (FSDP), only these and `forward` gather them.
    entry_points: tuple[str, ...] = ("compute_loss", "next_logits")
    # How its matrices are quantised (common/models/quantize.py); saved with every checkpoint.
    quantization: dict[str, Any] | None = None

    def __init__(self, vocab_size: int, **kwargs: Any) -> None:
        super().__init__()
        self._compiled_loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None
        self.vocab_size = vocab_size
        self.arguments = kwargs

    @abstractmethod
    def forward(
        self, input_ids: torch.Tensor, labels: torch.Tensor | None = None, cache: Any = None
    ) -> dict[str, torch.Tensor]:
        """Predict the next token at every position.

        Args:
            input_ids: (batch, time) int64.
            labels: (batch, time) int64, as in Hugging Face models the input ids themselves: the
                model shifts them, so that position t predicts labels[:, t + 1]. -100 is ignored.
            cache: what `new_cache` returned; the inputs then continue what it has seen. Models
                without a cache leave this parameter out.
        Returns: {"logits": (batch, time, vocab_size), and with labels "loss": mean nats per token}.
        """
        raise ModelError(f"{type(self).__name__} defines no forward")

    def compute_loss(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The loss alone, as training needs it; override where logits need not be kept for it."""
        return self(input_ids, labels=labels)["loss"]  # type: ignore[no-any-return]  # nn.Module

    def training_loss(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """`compute_loss` as the Trainer calls it: compiled, after `set_compile(True)`."""
        return (self._compiled_loss or self.compute_loss)(input_ids, labels)

    def set_compile(self, on: bool) -> None:
        """Let `training_loss` run through torch.compile; override to compile only what repeats."""
        self._compiled_loss = torch.compile(self.compute_loss, dynamic=False) if on else None

    def mask_documents(self, end_of_text: int) -> None:
        """From now on, without a cache, no token sees what stands before the last `end_of_text`.

        It is no part of a checkpoint. Raises ModelError for models that cannot.
        """
        raise ModelError(
            f"{type(self).__name__} cannot keep documents apart", "set data.document_mask=false"
        )

    @property
    def context_limit(self) -> int | None:
        """The most tokens that one forward pass can see; None where there is no limit."""
        return None

    def new_cache(self, batch_size: int, max_length: int) -> Any:
        """State for step-by-step generation of up to `max_length` tokens, or None: no cache."""
        return None

    def next_logits(self, input_ids: torch.Tensor, cache: Any = None) -> torch.Tensor:
        """Logits (batch, vocab_size) of the token after `input_ids`, all that generation needs.

        Override where those of the other positions need not be computed for it.
        """
        output = self(input_ids) if cache is None else self(input_ids, cache=cache)
        return output["logits"][:, -1]  # type: ignore[no-any-return]  # nn.Module

    def twin(self: M) -> M:
        """A copy for generation that shares all parameters; its large matrices are those of now.

        Override where large matrices are multiplied that are no `nn.Linear` (see twin.py).
        """
        return make_twin(self)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.Tensor,
        max_new_tokens: int = 100,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        stop_tokens: Sequence[int] = (),
        seed: int | None = None,
        num_sequences: int = 1,
    ) -> torch.Tensor:
        """Continue each row of `input_ids` (batch, time) int64.

        Args:
            temperature: 0 is greedy; `top_k` and `top_p` as in `sample_next`.
            stop_tokens: a row ends with the first of these; it is filled up with that token.
            seed: of the draws; None draws from the global generator.
            num_sequences: continuations per row, next to each other in the result.
        Returns: (batch * num_sequences, time + new tokens) int64, inputs included.
        """
        if num_sequences < 1:
            raise ModelError(f"num_sequences must be at least 1, got {num_sequences}")
        rows = input_ids.to(self.device).repeat_interleave(num_sequences, dim=0)
        stops = torch.tensor(list(stop_tokens), dtype=torch.int64, device=rows.device)
        finished = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
        columns = [rows]
        for token in self.stream(
            rows, max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed
        ):
            if len(stops):
                token = torch.where(finished, columns[-1][:, -1], token)
                finished |= (token[:, None] == stops).any(dim=1)
            columns.append(token[:, None])
            if len(stops) and bool(finished.all()):
                break
        return torch.cat(columns, dim=1)

    @torch.no_grad()
    def stream(
        self,
        input_ids: torch.Tensor,
        max_new_tokens: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
    ) -> Iterator[torch.Tensor]:
        """Yield one (batch,) int64 tensor per new token, as soon as it is drawn.

        The weights are those of the beginning: train no model while a stream of it goes on.
        """
        _check_sampling(input_ids, self.vocab_size, temperature, top_k, top_p)
        if max_new_tokens < 0:
            raise ModelError(f"max_new_tokens must not be negative, got {max_new_tokens}")
        if max_new_tokens == 0:
            return
        generator = None
        if seed is not None:
            generator = torch.Generator(device=self.device).manual_seed(seed)
        was_training = self.training
        self.eval()
        try:
            text = GrowingText(self, input_ids.to(self.device), max_new_tokens)
            for _ in range(max_new_tokens):
                with torch.inference_mode():  # of 124M a tenth less time than with no_grad alone
                    token = sample_next(
                        text.next_logits(),
                        temperature=temperature,
                        top_k=top_k,
                        top_p=top_p,
                        generator=generator,
                    )
                    text.append(token)
                yield token.clone()  # of the kind that may be trained on
        finally:
            self.train(was_training)

    def save_checkpoint(self, path: str | Path, **state: Any) -> Path:
        """Save weights and arguments to the folder `path`, with any JSON `state` beside them."""
        return save_model(self, Path(path), state)

    load_checkpoint = _ClassOrInstanceMethod()


def _check_sampling(
    input_ids: torch.Tensor,
    vocab_size: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
) -> None:
    if input_ids.ndim != 2 or input_ids.numel() == 0:
        raise ModelError(
            f"a prompt must have the shape (batch, time) and a token, got {tuple(input_ids.shape)}",
            "begin with the tokenizer's end_of_text where there is no prompt",
        )
    if not 0 <= int(input_ids.min()) <= int(input_ids.max()) < vocab_size:
        raise ModelError(f"token ids must be from 0 to {vocab_size - 1}")
    if not 0 <= temperature < math.inf:
        raise ModelError(f"temperature must be a number from 0 up, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ModelError(f"top_k must be at least 1, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ModelError(f"top_p must be above 0 and at most 1, got {top_p}")
