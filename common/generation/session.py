"""The text that a model generates, and how much of it the model has read."""

from __future__ import annotations

from typing import Any, Protocol

import torch

# A twin takes as long to make as it saves in some 10 (many rows) to 40 tokens (one row).
TWIN_FROM_TOKENS = 32
# On a CPU it takes as much memory again as the weights: of models of more than 2 GiB none is made.
TWIN_MAX_PARAMETERS = 2**29


class DecodableModel(Protocol):
    """What decoding asks of a model; `BaseLanguageModel` documents each member."""

    @property
    def context_limit(self) -> int | None: ...

    @property
    def device(self) -> torch.device: ...

    def num_parameters(self) -> int: ...

    def new_cache(self, batch_size: int, max_length: int) -> Any: ...

    def next_logits(self, input_ids: torch.Tensor, cache: Any = None) -> torch.Tensor: ...

    def twin(self) -> DecodableModel: ...


class GrowingText:
    """`prompt` (batch, time) int64 and room for new tokens, read by `model` step by step.

    When the context is full, its later half is read again into an empty cache: still O(context)
    per token on average, and every logit is what a plain forward pass over those tokens gives.
    """

    def __init__(self, model: DecodableModel, prompt: torch.Tensor, max_new_tokens: int) -> None:
        batch, time = prompt.shape
        self.tokens = torch.cat([prompt, prompt.new_empty(batch, max_new_tokens)], dim=1)
        self.limit = model.context_limit
        size = self.tokens.shape[1]
        self.size = min(size, self.limit) if self.limit else size  # of the cache
        self.model = model
        self.reader: DecodableModel = model.twin() if _twin_pays(model, max_new_tokens) else model
        self.end = time  # of what is written
        self._begin(max(time - self.size, 0))

    def _begin(self, first: int) -> None:
        """Forget what was read; the model sees the tokens from `first` on."""
        self.first = self.read = first
        self.cache: Any = self.model.new_cache(len(self.tokens), self.size)

    def next_logits(self) -> torch.Tensor:
        """Logits (batch, vocab_size) of the next token; reads what is new."""
        if self.limit and self.end - self.first > self.limit:
            self._begin(self.end - max(self.limit // 2, 1))
        start = self.first if self.cache is None else self.read
        self.read = self.end
        return self.reader.next_logits(self.tokens[:, start : self.end], self.cache)

    def append(self, token: torch.Tensor) -> None:
        """token: (batch,) int64"""
        self.tokens[:, self.end] = token
        self.end += 1


def _twin_pays(model: DecodableModel, max_new_tokens: int) -> bool:
    fits = model.device.type != "cpu" or model.num_parameters() <= TWIN_MAX_PARAMETERS
    return fits and max_new_tokens >= TWIN_FROM_TOKENS
