"""The interface of token mixers; the residual stack of the Decoder takes any of them."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from common.config import Config
from common.models.mixers.options import NoOptions

# Roles that an optimizer may treat differently: "matrix" is a weight between hidden layers,
# "vector" a bias or a norm gain.
ParameterRole = Literal["matrix", "embedding", "head", "vector"]


def at_least_fp32(x: torch.Tensor) -> torch.Tensor:
    """Cast to fp32, unless x is float64: sums over a whole text need it."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


@dataclass
class Positions:
    """Positions and documents of the tokens of one forward pass, shared by all layers.

    Attributes:
        start: position of the first token; the state covers the tokens before it.
        documents: (batch, time) int64, the document of each token, non-decreasing. Tokens only see
            tokens of their own document. None: one document. Not used together with a state.
        causal: False: attention also sees later tokens.
        mask: (batch, 1, time, time) bool attention mask, True where a query sees a key; None: as
            `causal`.
        padding: (batch, time) bool, see `is_padding` in models/loss.py; experts do not balance these
            tokens. None: no padding.
    """

    start: int = 0
    documents: torch.Tensor | None = None
    causal: bool = True
    mask: torch.Tensor | None = None
    padding: torch.Tensor | None = None

    def begins(self) -> torch.Tensor | None:
        """(batch, time) bool, True where a document starts after the first token; None: nowhere."""
        if self.documents is None:
            return None
        first = torch.zeros_like(self.documents[:, :1], dtype=torch.bool)
        return torch.cat([first, self.documents[:, 1:] != self.documents[:, :-1]], dim=1)


class Mixer(nn.Module):
    """Map (batch, time, hidden_size) to the same shape, causally.

    Subclasses take (config: DecoderConfig, options: Options, layer: int), with layers counted from 0,
    and define `forward`; those that generate with a state also `new_state`.
    """

    Options: type[Config] = NoOptions  # schema of `model.options.<name>`
    needs_mask = False  # whether `where.mask` is read

    @abstractmethod
    def forward(self, x: torch.Tensor, where: Positions, state: Any = None) -> torch.Tensor:
        """x and result: (batch, time, hidden_size). Reads `state` and updates it in place."""

    def new_state(self, batch_size: int, max_length: int) -> Any:
        """The state before the first of up to `max_length` tokens; None: no generation with a state."""
        return None

    @property
    def context_limit(self) -> int | None:
        """The maximum number of tokens; None: unlimited."""
        return None

    def flops_per_token(self, time: int) -> float:
        """FLOPs of a forward pass per token at length `time`, besides products with the weights."""
        return 0.0

    def parameter_roles(self) -> dict[str, ParameterRole]:
        """Roles of parameters, by name, that differ from `default_parameter_roles` (models/base.py)."""
        return {}

    def reset_parameters(self, std: float) -> None:
        """Initialise parameters other than those of `nn.Linear`; `std`: of weights."""
