"""A residual stack, [mixer + feed-forward] x n; GPT-2, Llama and the char-LSTM are presets."""

from __future__ import annotations

import math
from collections.abc import Callable
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
from common.models.feedforwards.base import FeedForward
from common.models.feedforwards.moe import MoE, Routing
from common.models.frozen import stored_weight
from common.models.linear_loss import TiedGradient, linear_next_token_loss
from common.models.loss import is_padding, next_token_loss
from common.models.mixers.base import Mixer, ParameterRole, Positions
from common.models.mixers.rope import RotaryEmbedding
from common.models.norms import make_norm
from common.models.registry import feedforward_class, mixer_class


@dataclass
class DecoderCache:
    """One state per layer, and the number of cached tokens."""

    layers: list[Any] = field(default_factory=list)
    length: int = 0


class Block(nn.Module):
    """x + mixer(norm(x)), then x + feedforward(norm(x)): the pre-norm residual of GPT-2, or another order of
    norms (`norm_placement`), or both parts at once (`parallel_residual`)."""

    mixer: Mixer

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        name = config.mixers[layer]
        before, after = config.norm_placement != "reordered", config.norm_placement != "pre"
        self.parallel = config.parallel_residual
        self.mixer_norm = make_norm(config) if before else nn.Identity()
        self.mixer = mixer_class(name)(config, config.options_of(name), layer)
        self.mixer_output_norm = make_norm(config) if after else nn.Identity()
        self.feedforward: FeedForward | None = None
        kind = config.feedforward_kinds[layer]
        if kind != "none":
            self.feedforward_norm = make_norm(config) if before else nn.Identity()
            self.feedforward = feedforward_class(kind)(config, config.options_of(kind), layer)
            self.feedforward_output_norm = make_norm(config) if after else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: torch.Tensor, where: Positions, state: Any = None
    ) -> torch.Tensor | tuple[torch.Tensor, Routing]:
        """See Mixer.forward. In training, a mixture of experts also returns its Routing: FSDP gathers
        the weights for the backward pass of what a block returns, and of nothing else."""
        output = self.mixer_output_norm(self.mixer(self.mixer_norm(x), where, state))
        mixed: torch.Tensor = x + self.dropout(output)
        if self.feedforward is None:
            return mixed
        normed = self.feedforward_norm(x if self.parallel else mixed)
        routing = None
        if self.training and isinstance(self.feedforward, MoE):
            output, routing = self.feedforward.routed(normed, where)
        else:
            output = self.feedforward(normed, where)
        output = mixed + self.dropout(self.feedforward_output_norm(output))
        return output if routing is None else (output, routing)


def _share_rope(mixers: list[Mixer]) -> None:
    """Layers with equal angles share one table: with a context of 131,072 tokens it takes 128 MiB."""
    tables: dict[tuple[int, float, str], RotaryEmbedding] = {}
    for mixer in mixers:
        rope = getattr(mixer, "rope", None)
        if isinstance(rope, RotaryEmbedding):
            mixer.rope = tables.setdefault((rope.size, rope.theta, repr(rope.scaling)), rope)


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
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        _share_rope(self.mixers)
        self.final_norm = make_norm(config)
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
        for mixer in self.mixers:
            mixer.reset_parameters(0.02)
        for feedforward in self.feedforwards:
            feedforward.reset_parameters(0.02, 0.02 / math.sqrt(2 * self.config.num_layers))

    @property
    def mixers(self) -> list[Mixer]:
        """The mixer of each layer, from the first."""
        return [block.mixer for block in self.blocks]  # type: ignore[misc]  # ModuleList forgets the type of its items

    @property
    def feedforwards(self) -> list[FeedForward]:
        """The feed-forward layers, from the first."""
        found = [block.feedforward for block in self.blocks]
        return [layer for layer in found if isinstance(layer, FeedForward)]

    @property
    def experts(self) -> list[MoE]:
        """The mixtures of experts, from the first layer on."""
        return [layer for layer in self.feedforwards if isinstance(layer, MoE)]

    def num_active_parameters(self) -> int:
        """Number of weights that one token meets: of a mixture of experts, those it is routed to."""
        idle = sum(
            sum(p.numel() for p in layer.parameters()) - layer.active_parameters()
            for layer in self.feedforwards
        )
        return self.num_parameters() - idle

    def parameter_roles(self) -> dict[str, ParameterRole]:
        """See BaseModel.parameter_roles; mixers know theirs."""
        roles = super().parameter_roles()
        for index, mixer in enumerate(self.mixers):
            for name, role in mixer.parameter_roles().items():
                roles[f"blocks.{index}.mixer.{name}"] = role
        return roles

    def set_compile(self, on: bool) -> None:
        """Compile only the blocks; blocks of one kind are compiled once."""
        compiled = [torch.compile(block, dynamic=False) for block in self.blocks] if on else []
        self._compiled_blocks = compiled

    def _train_block(self, index: int, x: torch.Tensor, where: Positions) -> Any:
        run = self._compiled_blocks[index] if self._compiled_blocks else self.blocks[index]
        if self.activation_checkpointing:
            return checkpoint(run, x, where, use_reentrant=False)
        return run(x, where)

    @property
    def context_limit(self) -> int | None:
        """See BaseLanguageModel.context_limit."""
        if self.config.positions == "learned":
            return self.config.context_length
        limits = [mixer.context_limit for mixer in self.mixers]
        return min((limit for limit in limits if limit is not None), default=None)

    @property
    def cache_switch(self) -> int | None:
        """See BaseLanguageModel.cache_switch."""
        ropes = [m for m in self.modules() if isinstance(m, RotaryEmbedding)]
        return next((rope.switch for rope in ropes if rope.switch is not None), None)

    def new_cache(self, batch_size: int, max_length: int) -> DecoderCache | None:
        """See BaseLanguageModel.new_cache; None if a mixer has no state."""
        states = [mixer.new_state(batch_size, max_length) for mixer in self.mixers]
        return None if any(state is None for state in states) else DecoderCache(states)

    def forward(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor | None = None,
        cache: DecoderCache | None = None,
    ) -> dict[str, torch.Tensor]:
        """See BaseLanguageModel.forward. Raises ModelError for more tokens than the context holds."""
        hidden, routings = self._hidden(input_ids, cache, labels)
        output = {"logits": self._logits(hidden)}
        if labels is not None:
            loss = next_token_loss(output["logits"], labels)
            output["loss"] = self._with_balance(loss, routings)
        return output

    def compute_loss(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Compute the loss without keeping the (batch, time, vocab_size) logits, unless they are capped."""
        if self.config.logits_soft_cap is not None:
            return self(input_ids, labels)["loss"]  # type: ignore[no-any-return]  # nn.Module
        layer = self.token_embedding if self.head is None else self.head
        weight = stored_weight(layer)
        tied = TiedGradient() if self.head is None and weight.requires_grad else None
        hidden, routings = self._hidden(input_ids, None, labels, tied)
        loss = linear_next_token_loss(hidden, weight, labels, tied)
        return self._with_balance(loss, routings)

    def _with_balance(self, loss: torch.Tensor, routings: list[Routing]) -> torch.Tensor:
        """Add the gradient of the experts' auxiliary losses to `loss`, but not their value."""
        for layer, routing in zip(self.experts, routings, strict=False):
            layer.count(routing)
            loss = loss + (routing.loss - routing.loss.detach())
        return loss

    def end_step(self, total: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """See BaseModel.end_step: balances the load of experts."""
        for layer in self.experts:
            layer.end_step(total)

    def training_metrics(self) -> dict[str, float]:
        """See BaseModel.training_metrics: `expert_<metric>_<layer>`, the layers of experts from 0."""
        return {
            f"expert_{name}_{index}": value
            for index, layer in enumerate(self.experts)
            for name, value in layer.metrics().items()
        }

    def next_logits(
        self, input_ids: torch.Tensor, cache: DecoderCache | None = None
    ) -> torch.Tensor:
        """See BaseLanguageModel.next_logits."""
        return self._logits(self._hidden(input_ids, cache)[0][:, -1])

    def fast_copy(self) -> Decoder:
        """See BaseLanguageModel.fast_copy; a tied output projection is not a separate module."""
        copy = super().fast_copy()
        weight = self.token_embedding.weight
        if copy is not self and self.head is None and is_worth_packing(weight):
            copy.head = PackedLinear(weight)
        return copy

    def mask_documents(self, end_of_text: int) -> None:
        """See BaseLanguageModel.mask_documents."""
        self.end_of_text = end_of_text

    def embed(self, input_ids: torch.Tensor, tied: TiedGradient | None = None) -> torch.Tensor:
        """(batch, time) int64 -> (batch, time, hidden_size), without positions."""
        if tied is not None:
            x = tied.embed(input_ids, self.token_embedding.weight)
        else:
            x = self.token_embedding(input_ids)
        scale = self.config.embedding_scale
        return x if scale is None else x * x.new_tensor(scale)  # rounded as the weights

    def _positions(self, input_ids: torch.Tensor, cache: DecoderCache | None) -> Positions:
        """A document starts at the end-of-text token before it, which predicts its first token."""
        if cache is not None:
            return Positions(start=cache.length)
        causal = self.config.causal
        if self.end_of_text is None:
            return Positions(causal=causal)
        documents = (input_ids == self.end_of_text).cumsum(dim=1)
        where = Positions(documents=documents, causal=causal)
        if any(mixer.needs_mask for mixer in self.mixers):
            same = (documents[:, :, None] == documents[:, None, :])[:, None]
            where.mask = same.tril() if causal else same
        return where

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., hidden_size) -> (..., vocab_size)"""
        if self.head is None:
            logits = F.linear(hidden, self.token_embedding.weight)
        else:
            logits = self.head(hidden)
        cap = self.config.logits_soft_cap
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def _hidden(
        self,
        input_ids: torch.Tensor,
        cache: DecoderCache | None,
        labels: torch.Tensor | None = None,
        tied: TiedGradient | None = None,
    ) -> tuple[torch.Tensor, list[Routing]]:
        """(batch, time) int64 -> the normalised last residual (batch, time, hidden_size), and in training the
        Routing of each mixture of experts, for which `labels` mark the padding."""
        where = self._positions(input_ids, cache)
        if labels is not None and self.training and self.experts:
            where.padding = is_padding(labels)
        return self._run(self.embed(input_ids, tied), where, cache)

    def encode(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Run the layers on embeddings of anything, such as the patches of an image.

        Args:
            embeddings: (batch, time, hidden_size), without positions.
        Returns: the normalised last residual, of the same shape.
        Raises ModelError for more tokens than the context holds.
        """
        return self._run(embeddings, Positions(causal=self.config.causal), None)[0]

    def _run(
        self, x: torch.Tensor, where: Positions, cache: DecoderCache | None
    ) -> tuple[torch.Tensor, list[Routing]]:
        """Add positions to the embeddings `x`, then apply all layers, see `_hidden`."""
        routings = list[Routing]()
        start, end = where.start, where.start + x.shape[1]
        if self.context_limit and end > self.context_limit:
            raise ModelError(
                f"{end} tokens are more than the model's context of {self.context_limit}",
                "cut the input, or build the model with a larger context_length",
            )
        if self.position_embedding is not None:
            x = x + self.position_embedding(torch.arange(start, end, device=x.device))
        x = self.dropout(x)
        for index, block in enumerate(self.blocks):
            if self.training and cache is None:
                x = self._train_block(index, x, where)
            else:
                x = block(x, where, cache.layers[index] if cache else None)
            if isinstance(x, tuple):
                x, routing = x
                routings.append(routing)
        if cache is not None:
            cache.length = end
        return self.final_norm(x), routings
