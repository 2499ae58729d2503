"""The classes behind the names of a configuration: `mixer: mamba2`, `feedforward: moe`. Imports no torch.

A layer of one's own is named `package.module:Class`; nothing has to be registered.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, TypeVar

from common.errors import ModelError

if TYPE_CHECKING:
    from common.models.feedforwards.base import FeedForward
    from common.models.mixers.base import Mixer

Layer = TypeVar("Layer")
_MIXERS = "common.models.mixers"
MIXERS = {
    "attention": f"{_MIXERS}.attention:Attention",
    "nope_attention": f"{_MIXERS}.attention:NoPositionAttention",
    "local_attention": f"{_MIXERS}.local_attention:LocalAttention",
    "latent_attention": f"{_MIXERS}.latent_attention:LatentAttention",
    "lstm": f"{_MIXERS}.recurrent:LSTM",
    "gru": f"{_MIXERS}.recurrent:GRU",
    "min_gru": f"{_MIXERS}.minimal:MinGRU",
    "min_lstm": f"{_MIXERS}.minimal:MinLSTM",
    "convolution": f"{_MIXERS}.convolution:Convolution",
    "gated_convolution": f"{_MIXERS}.convolution:GatedConvolution",
    "mamba": f"{_MIXERS}.mamba:Mamba",
    "mamba2": f"{_MIXERS}.mamba:Mamba2",
    "retnet": f"{_MIXERS}.linear_attention:RetNet",
    "gla": f"{_MIXERS}.linear_attention:GLA",
    "mlstm": f"{_MIXERS}.xlstm:MLSTM",
    "slstm": f"{_MIXERS}.xlstm:SLSTM",
    "delta_net": f"{_MIXERS}.delta_net:DeltaNet",
    "gated_delta_net": f"{_MIXERS}.delta_net:GatedDeltaNet",
    "rwkv7": f"{_MIXERS}.rwkv7:RWKV7",
}
_FEEDFORWARDS = "common.models.feedforwards"
FEEDFORWARDS = {
    "mlp": f"{_FEEDFORWARDS}.dense:MLP",
    "swiglu": f"{_FEEDFORWARDS}.dense:SwiGLU",
    "geglu": f"{_FEEDFORWARDS}.dense:GEGLU",
    "moe": f"{_FEEDFORWARDS}.moe:MoE",
}


def layer_class(name: str) -> type[Any]:
    """The class of a mixer or feed-forward layer. Raises ModelError where there is none of that name."""
    module, _, attribute = (MIXERS | FEEDFORWARDS).get(name, name).partition(":")
    try:
        found: Any = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ModelError(f"{name}: {error}", "it is imported as package.module:Class") from error
    layer: type[Any] = found
    return layer


def mixer_class(name: str) -> type[Mixer]:
    """Raises ModelError for a name that stands for no mixer."""
    from common.models.mixers.base import Mixer

    return _subclass(name, Mixer)  # type: ignore[type-abstract]  # it is only compared with


def feedforward_class(name: str) -> type[FeedForward]:
    """Raises ModelError for a name that stands for no feed-forward layer."""
    from common.models.feedforwards.base import FeedForward

    return _subclass(name, FeedForward)  # type: ignore[type-abstract]  # as above


def _subclass(name: str, base: type[Layer]) -> type[Layer]:
    found = layer_class(name)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ModelError(f"{name} is no subclass of {base.__module__}.{base.__qualname__}")
    return found
