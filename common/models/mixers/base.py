"""What a mixer is: how tokens see each other. One residual stack holds any of them."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from common.config import Config
from common.models.mixers.options import NoOptions

# What an optimizer may treat in its own way: "matrix" is a weight between hidden layers, "vector" a
# bias or the gain of a norm.
ParameterRole = Literal["matrix", "embedding", "head", "vector"]


@dataclass
class Positions:
    """Where the tokens of a forward pass stand; made once, the same for all layers.

    Attributes:
        start: position of the first token; what was before it is in the state.
        documents: (batch, time) int64, the document of each token, never falling: a token sees the tokens
            of its own document alone. None: all before it. Never with a state.
        causal: False: attention sees the tokens after it too.
        mask: (batch, 1, time, time) bool of attention, True where a query sees a key; None: all that
            `causal` leaves.
        routings: in training, what the mixtures of experts append, from the first layer on.
    """

    start: int = 0
    documents: torch.Tensor | None = None
    causal: bool = True
    mask: torch.Tensor | None = None
    routings: list[Any] = field(default_factory=list)

    def begins(self) -> torch.Tensor | None:
        """(batch, time) bool, True for the first token of a document, but not of the row; None: nowhere."""
        if self.documents is None:
            return None
        first = torch.zeros_like(self.documents[:, :1], dtype=torch.bool)
        return torch.cat([first, self.documents[:, 1:] != self.documents[:, :-1]], dim=1)


class Mixer(nn.Module):
    """Maps (batch, time, hidden_size) to the same shape, causally. Subclass it, and write `forward`.

    Args:
        hidden_size: of x; the constructor of a subclass gets (config: DecoderConfig, options: Options,
            layer: int), with layers counted from 0.
    """

    Options: type[Config] = NoOptions  # what `model.options.<name>` may set
    needs_mask = False  # whether `where.mask` is read

    @abstractmethod
    def forward(self, x: torch.Tensor, where: Positions, state: Any = None) -> torch.Tensor:
        """x: (batch, time, hidden_size), as the result. `state` is read, and updated in place."""

    def new_state(self, batch_size: int, max_length: int) -> Any:
        """The state before the first token of up to `max_length`; None: it can only see whole texts."""
        return None

    @property
    def context_limit(self) -> int | None:
        """The most tokens that it can see; None: any number."""
        return None

    def flops_per_token(self, time: int) -> float:
        """FLOPs of a forward pass per token in a text of `time` tokens, without the products with weights."""
        return 0.0

    def parameter_roles(self) -> dict[str, ParameterRole]:
        """Of the parameters, by name, whose role `default_parameter_roles` (models/base.py) cannot see."""
        return {}

    def reset_parameters(self, std: float) -> None:
        """Initialise what is neither the weight nor the bias of an `nn.Linear`."""
