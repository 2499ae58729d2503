"""Base classes of models: BaseModel (saving, loading, compilation) and BaseLanguageModel."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from common.errors import ModelError
from common.generation import decoding
from common.generation.fast_copy import make_fast_copy
from common.models.checkpoint import identity_of, load_model, save_checkpoint, weights_of
from common.models.mixers.base import ParameterRole

M = TypeVar("M", bound="BaseModel")
LM = TypeVar("LM", bound="BaseLanguageModel")
Model = TypeVar("Model", bound="BaseModel", covariant=True)


def default_parameter_roles(model: nn.Module) -> dict[str, ParameterRole]:
    """Map each parameter name to its role, by its dimensions and the module that holds it.

    Weights of `nn.Embedding` are embeddings, those of the submodule `head` are the head.
    """
    embeddings = {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding)}

    def role(name: str, parameter: nn.Parameter) -> ParameterRole:
        if parameter.ndim < 2:
            return "vector"
        if id(parameter) in embeddings:
            return "embedding"
        return "head" if name.startswith("head.") else "matrix"

    return {name: role(name, parameter) for name, parameter in model.named_parameters()}


class _LoadCheckpoint(Protocol[Model]):
    def __call__(self, path: str | Path, device: str | torch.device = "cpu") -> Model: ...


class _ClassOrInstanceMethod:
    """`Model.load_checkpoint(path)` builds a model, `model.load_checkpoint(path)` fills this one.

    Both are common; with a plain method or classmethod one of them would silently leave the model
    unchanged.
    """

    def __get__(self, instance: M | None, owner: type[M]) -> _LoadCheckpoint[M]:
        return partial(load_model, instance if instance is not None else owner)


class BaseModel(nn.Module):
    """Base class of models: subclass it, keep the keyword arguments JSON-like, and write `forward`.

    Args:
        **kwargs: whatever the subclass needs to be built again; saved with every checkpoint.
    """

    # Keep only the inputs of each block for the backward pass and recompute the rest (Chen et al.
    # 2016, "Training Deep Nets with Sublinear Memory Cost"); for models that support it.
    activation_checkpointing = False
    supports_activation_checkpointing = False
    # Entry points besides `forward` that compute with the weights. With sharded weights (FSDP) only
    # these and `forward` gather them.
    entry_points: tuple[str, ...] = ()
    # Quantisation of the matrices (common/models/quantize.py); saved with every checkpoint.
    quantization: dict[str, Any] | None = None
    # Settings of LoRA adapters (common/models/lora.py); saved with every checkpoint.
    lora: dict[str, Any] | None = None

    def __init__(self, **kwargs: Any) -> None:
        super().__init__()
        self.arguments = kwargs

    @abstractmethod
    def forward(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        """Compute the outputs: {"logits": ..., and any others}."""
        raise ModelError(f"{type(self).__name__} defines no forward")

    def constructor_arguments(self) -> dict[str, Any]:
        """What `load_checkpoint` needs to rebuild the model, as stored in state.json."""
        return {"arguments": self.arguments}

    def set_compile(self, on: bool) -> None:
        """Run the model through torch.compile; override to compile only repeated blocks."""
        if on:
            self.compile(dynamic=False)
        else:
            self._compiled_call_impl = None

    def parameter_roles(self) -> dict[str, ParameterRole]:
        """Map each parameter name to its role, which selects the optimizer (Muon for matrices).

        Override for parameters whose role the default cannot infer:
        `super().parameter_roles() | {"tokens": "embedding"}`.
        """
        return default_parameter_roles(self)

    def end_step(self, total: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Called after the backward passes of each optimizer step; override for what follows from them.

        Args:
            total: sums a tensor over all processes, in place, and returns it.
        """

    def training_metrics(self) -> dict[str, float]:
        """What the model adds to a row of the training log, about the steps since the last one."""
        return {}

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return next(self.parameters()).device

    def num_parameters(self, trained: bool = False) -> int:
        """Number of weights, or of those that are `trained`; tied ones count once."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not trained)

    def save_checkpoint(self, path: str | Path, **state: Any) -> Path:
        """Save weights, arguments and a JSON `state` to the folder `path`."""
        state = {"model": identity_of(self), **state}
        return save_checkpoint(Path(path), weights_of(self), state, {})

    load_checkpoint = _ClassOrInstanceMethod()


class BaseLanguageModel(BaseModel):
    """A model that predicts the next token.

    Args:
        vocab_size: number of tokens.
        **kwargs: whatever the subclass needs to be built again; saved with every checkpoint.
    """

    entry_points: tuple[str, ...] = ("compute_loss", "next_logits")

    def __init__(self, vocab_size: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._compiled_loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None
        self.vocab_size = vocab_size

    @abstractmethod
    def forward(
        self, input_ids: torch.Tensor, labels: torch.Tensor | None = None, cache: Any = None
    ) -> dict[str, torch.Tensor]:
        """Predict the next token at every position.

        Args:
            input_ids: (batch, time) int64.
            labels: (batch, time) int64, the input ids themselves as in Hugging Face models: the
                model shifts them, so that position t predicts labels[:, t + 1]. -100 is ignored.
            cache: result of `new_cache`; the inputs continue its tokens. Models without a cache
                omit this parameter.
        Returns: {"logits": (batch, time, vocab_size), and with labels "loss": mean nats per token}.
        """
        raise ModelError(f"{type(self).__name__} defines no forward")

    def constructor_arguments(self) -> dict[str, Any]:
        """See BaseModel.constructor_arguments."""
        return {"vocab_size": self.vocab_size, **super().constructor_arguments()}

    def compute_loss(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Compute only the loss, for training; override to avoid keeping the logits."""
        return self(input_ids, labels=labels)["loss"]  # type: ignore[no-any-return]  # nn.Module

    def training_loss(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """`compute_loss` as the Trainer calls it: compiled, after `set_compile(True)`."""
        return (self._compiled_loss or self.compute_loss)(input_ids, labels)

    def set_compile(self, on: bool) -> None:
        """Run `training_loss` through torch.compile; override to compile only repeated blocks."""
        self._compiled_loss = torch.compile(self.compute_loss, dynamic=False) if on else None

    def mask_documents(self, end_of_text: int) -> None:
        """Mask attention across documents: without a cache, no token sees tokens before the last `end_of_text`.

        Not saved in checkpoints. Raises ModelError if the model does not support it.
        """
        raise ModelError(
            f"{type(self).__name__} does not support a document mask",
            "set data.document_mask=false",
        )

    @property
    def context_limit(self) -> int | None:
        """Maximum number of tokens of a forward pass; None: no limit."""
        return None

    @property
    def cache_switch(self) -> int | None:
        """Number of tokens beyond which a text is computed otherwise from its first token on, so that a shorter
        cache cannot be continued (LongRoPE); None: none."""
        return None

    def new_cache(self, batch_size: int, max_length: int) -> Any:
        """Create the cache for generating up to `max_length` tokens; None: the model has no cache."""
        return None

    def next_logits(self, input_ids: torch.Tensor, cache: Any = None) -> torch.Tensor:
        """Compute logits (batch, vocab_size) of the token after `input_ids`, for generation.

        Override to skip the logits of other positions.
        """
        output = self(input_ids) if cache is None else self(input_ids, cache=cache)
        return output["logits"][:, -1]  # type: ignore[no-any-return]  # nn.Module

    def fast_copy(self: LM) -> LM:
        """Return a copy for generation that shares all parameters; large matrices are a snapshot.

        Override for large matrices outside of `nn.Linear` (see fast_copy.py).
        """
        return make_fast_copy(self)

    generate = decoding.generate
    stream = decoding.stream
