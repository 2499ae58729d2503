"""A Decoder that fills in masked tokens, for masked diffusion."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from common.errors import ModelError
from common.generation import unmasking
from common.models.decoder import Decoder, DecoderCache
from common.models.linear_loss import TiedGradient


class MaskedDecoder(Decoder):
    """A Decoder whose tokens see each other in both directions, with one more input: `mask_token`.

    The logits at a position are of its own token, not of the next. It predicts no mask.
    """

    entry_points: tuple[str, ...] = (*Decoder.entry_points, "masked_loss", "logits_at")

    def __init__(self, vocab_size: int, **kwargs: Any) -> None:
        if kwargs.get("causal", False):
            raise ModelError(
                "a MaskedDecoder is not causal: it fills in a mask by the tokens on both sides",
                "set causal=false, or leave it out",
            )
        super().__init__(vocab_size, **{**kwargs, "causal": False})
        self.mask_embedding = nn.Parameter(torch.empty(self.config.hidden_size))
        nn.init.normal_(self.mask_embedding, std=0.02)

    @property
    def mask_token(self) -> int:
        """The id of the mask, the first after the vocabulary."""
        return self.vocab_size

    def embed(self, input_ids: torch.Tensor, tied: TiedGradient | None = None) -> torch.Tensor:
        """See Decoder.embed; the mask has an embedding of its own."""
        masked = input_ids == self.mask_token
        x = super().embed(input_ids.masked_fill(masked, 0), tied)
        return torch.where(masked[..., None], self.mask_embedding.to(x.dtype), x)

    def logits_at(self, input_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Compute the logits of some tokens.

        Args:
            input_ids: (batch, time) int64.
            positions: (batch, time) bool.
        Returns: (number of positions, vocab_size), row by row.
        """
        hidden, _ = self._hidden(input_ids, None)
        return self._logits(hidden[positions])

    def masked_loss(
        self, input_ids: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """Sum over rows of weight * the nats of its labels.

        Args:
            input_ids, labels: (batch, time) int64; label -100 is ignored.
            weights: (batch,).
        """
        hidden, routings = self._hidden(input_ids, None)
        predicted = labels >= 0
        nats = F.cross_entropy(
            self._logits(hidden[predicted]).float(), labels[predicted], reduction="none"
        )
        rows = weights[:, None].expand_as(labels)[predicted]
        return self._with_balance((nats * rows).sum(), routings)

    def forward(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor | None = None,
        cache: DecoderCache | None = None,
    ) -> dict[str, torch.Tensor]:
        """Compute {"logits": (batch, time, vocab_size)} of every token itself.

        Raises ModelError for labels or a cache, which are for predicting the next token.
        """
        if labels is not None or cache is not None:
            raise _no_next_token()
        return super().forward(input_ids)

    def compute_loss(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Raises ModelError: the next token is visible here."""
        raise _no_next_token()

    def next_logits(
        self, input_ids: torch.Tensor, cache: DecoderCache | None = None
    ) -> torch.Tensor:
        """Raises ModelError: it predicts no next token."""
        raise _no_next_token()

    def new_cache(self, batch_size: int, max_length: int) -> None:
        """None: every token sees the others, so that none can be read once and for all."""

    def mask_documents(self, end_of_text: int) -> None:
        """Raises ModelError: masks hide where documents end."""
        raise ModelError(
            "masked diffusion does not keep documents apart: masks hide where they end",
            "set data.document_mask=false",
        )

    generate = unmasking.generate
    stream = unmasking.stream


def _no_next_token() -> ModelError:
    return ModelError(
        "a MaskedDecoder does not predict the next token",
        "train and evaluate it with the objective MaskedDiffusion",
    )
