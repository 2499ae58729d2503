"""A residual stack, [mixer + feed-forward] x n; GPT-2, Llama and the char-LSTM are presets."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import nn
from torch.utils.checkpoint import checkpoint

from common.errors import ModelError
from common.generation.fast_copy import PackedLinear, is_worth_packing
from common.models.base import BaseLanguageModel
from common.models.config import DecoderConfig
from common.models.feedforward import MLP, SwiGLU
from common.models.linear_loss import TiedGradient, linear_next_token_loss
from common.models.loss import next_token_loss
from common.models.mixers.attention import Attention
from common.models.mixers.lstm import LSTM

MIXERS: dict[str, type[Attention | LSTM]] = {"attention": Attention, "lstm": LSTM}
FEEDFORWARDS: dict[str, type[MLP | SwiGLU]] = {"mlp": MLP, "swiglu": SwiGLU}


@dataclass
class DecoderCache:
    """One state per layer, and the number of cached tokens."""

    layers: list[Any] = field(default_factory=list)
    length: int = 0


def _norm(config: DecoderConfig) -> nn.Module:
    if config.norm == "layernorm":
        return nn.LayerNorm(config.hidden_size, eps=config.norm_eps or 1e-5, bias=config.bias)
    return nn.RMSNorm(config.hidden_size, eps=config.norm_eps or 1e-6)


class Block(nn.Module):
    """x + mixer(norm(x)), then x + feedforward(norm(x)): the pre-norm residual of GPT-2."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.mixer_norm = _norm(config)
        self.mixer = MIXERS[config.mixer](config)
        self.feedforward: nn.Module | None = None
        if config.feedforward != "none":
            self.feedforward_norm = _norm(config)
            self.feedforward = FEEDFORWARDS[config.feedforward](config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: torch.Tensor, cache: Any = None, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """x: (batch, time, hidden_size); attention_mask: as in `eager_attention`."""
        arguments = (cache,) if attention_mask is None else (cache, attention_mask)
        x = x + self.dropout(self.mixer(self.mixer_norm(x), *arguments))
        if self.feedforward is not None:
            x = x + self.dropout(self.feedforward(self.feedforward_norm(x)))
        return x


def _share_rope(blocks: nn.ModuleList) -> None:
    """All layers share one table of angles: with a context of 131,072 tokens it takes 128 MiB."""
    mixers = [module for module in blocks.modules() if isinstance(module, Attention)]
    for mixer in mixers:
        mixer.rope = mixers[0].rope


class Decoder(BaseLanguageModel):
    """`Decoder(vocab_size, preset="gpt2", num_layers=4, ...)`; the arguments are DecoderConfig's."""

    supports_activation_checkpointing = True

    def __init__(self, vocab_size: int, **kwargs: Any) -> None:
        try:
            config = DecoderConfig(**kwargs)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise ModelError(f"Decoder({key}): {first['msg']}") from error
        super().__init__(vocab_size, **config.model_dump())
        self.config = config
        self.end_of_text: int | None = None  # if set, attention does not cross documents
        self.token_embedding = nn.Embedding(vocab_size, config.hidden_size)
        self.position_embedding = None
        if config.positions == "learned":
            self.position_embedding = nn.Embedding(config.context_length, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        _share_rope(self.blocks)
        self.final_norm = _norm(config)
        self._compiled_blocks: list[Any] = []  # a plain list does not register the weights again
        self.head = None
        if not config.tie_embeddings:
            self.head = nn.Linear(config.hidden_size, vocab_size, bias=False)
        self._initialise()

    def _initialise(self) -> None:
        """Radford et al. 2019, section 2.3: N(0, 0.02), residual projections / sqrt(their number)."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for name, parameter in self.named_parameters():
            if name.endswith((".mixer.output.weight", ".feedforward.output.weight")):
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * self.config.num_layers))

    def set_compile(self, on: bool) -> None:
        """Compile only the blocks: they are alike, so one compilation serves all."""
        compiled = [torch.compile(block, dynamic=False) for block in self.blocks] if on else []
        self._compiled_blocks = compiled

    def _train_block(
        self, index: int, x: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> torch.Tensor:
        run = self._compiled_blocks[index] if self._compiled_blocks else self.blocks[index]
        if self.activation_checkpointing:
            return checkpoint(run, x, None, attention_mask, use_reentrant=False)  # type: ignore[no-any-return]  # untyped
        return run(x, None, attention_mask)  # type: ignore[no-any-return]  # nn.Module.__call__ is untyped

    @property
    def context_limit(self) -> int | None:
        unlimited = self.config.mixer == "lstm" and self.config.positions != "learned"
        return None if unlimited else self.config.context_length

    def new_cache(self, batch_size: int, max_length: int) -> DecoderCache:
        blocks = [block.mixer for block in self.blocks]
        return DecoderCache([mixer.new_cache(batch_size, max_length) for mixer in blocks])  # type: ignore[operator, union-attr]  # ModuleList forgets the type of its items

    def forward(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor | None = None,
        cache: DecoderCache | None = None,
    ) -> dict[str, torch.Tensor]:
        """See BaseLanguageModel.forward. Raises ModelError for more tokens than the context holds."""
        output = {"logits": self._logits(self._hidden(input_ids, cache))}
        if labels is not None:
            output["loss"] = next_token_loss(output["logits"], labels)
        return output

    def compute_loss(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Compute the loss without keeping the (batch, time, vocab_size) logits."""
        tied = TiedGradient() if self.head is None else None
        hidden = self._hidden(input_ids, None, tied)
        return linear_next_token_loss(hidden, self._output_weight, labels, tied)

    @property
    def _output_weight(self) -> torch.Tensor:
        return self.token_embedding.weight if self.head is None else self.head.weight

    def next_logits(
        self, input_ids: torch.Tensor, cache: DecoderCache | None = None
    ) -> torch.Tensor:
        """See BaseLanguageModel.next_logits."""
        return self._logits(self._hidden(input_ids, cache)[:, -1])

    def fast_copy(self) -> Decoder:
        """See BaseLanguageModel.fast_copy; a tied output projection is not a separate module."""
        copy = super().fast_copy()
        weight = self.token_embedding.weight
        if copy is not self and self.head is None and is_worth_packing(weight):
            copy.head = PackedLinear(weight)
        return copy

    def mask_documents(self, end_of_text: int) -> None:
        """See BaseLanguageModel.mask_documents."""
        if self.config.mixer != "attention":
            raise ModelError(
                f"mixer={self.config.mixer} carries its state across documents",
                "set data.document_mask=false, or model.mixer=attention",
            )
        self.end_of_text = end_of_text

    def _attention_mask(self, input_ids: torch.Tensor) -> torch.Tensor | None:
        """Causal mask within documents, (batch, 1, time, time) bool.

        A document starts at the end-of-text token before it, which predicts its first token.
        """
        if self.end_of_text is None:
            return None
        document = (input_ids == self.end_of_text).cumsum(dim=1)
        return (document[:, :, None] == document[:, None, :]).tril()[:, None]

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., hidden_size) -> (..., vocab_size)"""
        if self.head is None:
            return F.linear(hidden, self.token_embedding.weight)
        logits: torch.Tensor = self.head(hidden)
        return logits

    def _hidden(
        self,
        input_ids: torch.Tensor,
        cache: DecoderCache | None,
        tied: TiedGradient | None = None,
    ) -> torch.Tensor:
        """(batch, time) int64 -> the normalised last residual (batch, time, hidden_size)."""
        start = cache.length if cache else 0
        end = start + input_ids.shape[1]
        if self.context_limit and end > self.context_limit:
            raise ModelError(
                f"{end} tokens are more than the model's context of {self.context_limit}",
                "cut the input, or build the model with a larger context_length",
            )
        if tied is None:
            x = self.token_embedding(input_ids)
        else:
            x = tied.embed(input_ids, self.token_embedding.weight)
        if self.position_embedding is not None:
            x = x + self.position_embedding(torch.arange(start, end, device=input_ids.device))
        x = self.dropout(x)
        attention_mask = self._attention_mask(input_ids) if cache is None else None
        for index, block in enumerate(self.blocks):
            if self.training and cache is None:
                x = self._train_block(index, x, attention_mask)
            else:
                x = block(x, cache.layers[index] if cache else None, attention_mask)
        if cache is not None:
            cache.length = end
        hidden: torch.Tensor = self.final_norm(x)
        return hidden
