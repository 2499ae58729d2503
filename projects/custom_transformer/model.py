"""The transformer for the shared Trainer: parameters, loss, cached generation."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from common.errors import ModelError
from common.models.base import BaseLanguageModel, ParameterRole
from projects.custom_transformer import layers
from projects.custom_transformer.layers import Tensor
from projects.custom_transformer.network import BLOCK_PARAMETERS, Network, split_blocks


@dataclass
class Cache:
    """Keys and values of every block, (b h, length, d), and the number of tokens seen."""

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    length: int = 0


class CustomTransformer(BaseLanguageModel):
    """RMSNorm, causal attention, squared-ReLU MLP, learned positions, tied embedding, no biases.

    Computes in the dtype of its parameters: it has no mixed-precision path.
    """

    def __init__(
        self,
        vocab_size: int,
        num_layers: int = 4,
        num_heads: int = 4,
        hidden_size: int = 128,
        context_length: int = 128,
    ) -> None:
        if hidden_size % num_heads:
            raise ModelError(
                f"hidden_size {hidden_size} is not a multiple of num_heads {num_heads}"
            )
        super().__init__(
            vocab_size,
            num_layers=num_layers,
            num_heads=num_heads,
            hidden_size=hidden_size,
            context_length=context_length,
        )
        self.num_heads, self.context_length = num_heads, context_length
        self.token_embedding = nn.Parameter(torch.empty(vocab_size, hidden_size))
        self.position_embedding = nn.Parameter(torch.empty(context_length, hidden_size))
        self.blocks = nn.ModuleList(
            nn.ParameterDict(
                {
                    "norm1": torch.ones(hidden_size),
                    "qkv": torch.empty(3 * hidden_size, hidden_size),
                    "out": torch.empty(hidden_size, hidden_size),
                    "norm2": torch.ones(hidden_size),
                    "mlp1": torch.empty(4 * hidden_size, hidden_size),
                    "mlp2": torch.empty(hidden_size, 4 * hidden_size),
                }
            )
            for _ in range(num_layers)
        )
        self.last_norm = nn.Parameter(torch.ones(hidden_size))
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:  # as in GPT-2: smaller residual projections
                residual = name.endswith(("out", "mlp2"))
                std = 0.02 / math.sqrt(2 * num_layers) if residual else 0.02
                nn.init.normal_(parameter, std=std)

    def flat_parameters(self) -> tuple[nn.Parameter, ...]:
        """Parameters in the order of `Network`."""
        in_blocks = [block[name] for block in self.blocks for name in BLOCK_PARAMETERS]
        return (self.token_embedding, self.position_embedding, *in_blocks, self.last_norm)

    def parameter_roles(self) -> dict[str, ParameterRole]:
        """See BaseModel.parameter_roles; the embeddings here are not modules."""
        embeddings: dict[str, ParameterRole] = {
            "token_embedding": "embedding",
            "position_embedding": "embedding",
        }
        return super().parameter_roles() | embeddings

    @property
    def context_limit(self) -> int:
        return self.context_length

    def new_cache(self, batch_size: int, max_length: int) -> Cache:
        return Cache()

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        cache: Cache | None = None,
    ) -> dict[str, Tensor]:
        """See BaseLanguageModel.forward. Raises ModelError for more tokens than the context holds."""
        self._check_length(input_ids.shape[1] + (cache.length if cache else 0))
        if cache is not None:
            return {"logits": self._continue(input_ids, cache)}
        loss, logits = self._run(input_ids, labels, keep_logits=True)
        return {"logits": logits} if loss is None else {"logits": logits, "loss": loss}

    def compute_loss(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss without the (batch, time, vocab_size) logits."""
        self._check_length(input_ids.shape[1])
        loss: Tensor = self._run(input_ids, labels, keep_logits=False)[0]
        return loss

    def _run(self, input_ids: Tensor, labels: Tensor | None, keep_logits: bool) -> Any:
        with torch.autocast(input_ids.device.type, enabled=False):
            return Network.apply(
                input_ids, labels, self.num_heads, keep_logits, *self.flat_parameters()
            )

    def _check_length(self, length: int) -> None:
        if length > self.context_length:
            raise ModelError(
                f"{length} tokens are more than the model's context of {self.context_length}",
                "cut the input, or build the model with a larger context_length",
            )

    @torch.no_grad()
    def _continue(self, input_ids: Tensor, cache: Cache) -> Tensor:
        """Logits (batch, time, vocab_size) of new tokens after those in the cache, which grows."""
        tokens, positions, *rest, last_gain = self.flat_parameters()
        batch, time = input_ids.shape
        x = layers.embedding_forward(input_ids, tokens, positions, cache.length)
        for index, block in enumerate(split_blocks(rest)):
            gain1, qkv, out, gain2, weight1, weight2 = block
            projected = torch.mm(layers.rms_norm_forward(x, gain1)[0], qkv.t())
            query, key, value = layers.split_heads(projected, batch, self.num_heads)
            if cache.length:
                key = torch.cat([cache.keys[index], key], dim=1)
                value = torch.cat([cache.values[index], value], dim=1)
                cache.keys[index], cache.values[index] = key, value
            else:
                cache.keys.append(key)
                cache.values.append(value)
            mixed = layers.join_heads(layers.attention_forward(query, key, value)[None], batch)
            x = torch.addmm(x, mixed, out.t())
            x = x + layers.mlp_forward(layers.rms_norm_forward(x, gain2)[0], weight1, weight2)[0]
        cache.length += time
        hidden = layers.rms_norm_forward(x, last_gain)[0]
        return torch.mm(hidden, tokens.t()).view(batch, time, -1)
