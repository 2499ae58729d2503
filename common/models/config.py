"""Configuration of a Decoder. Imports no torch, so that a wrong key is reported at once."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from common.config import Config
from common.errors import did_you_mean
from common.models.mixers.options import OPTIONS
from common.models.registry import FEEDFORWARDS, MIXERS, layer_class

_LLAMA: dict[str, Any] = {
    "positions": "rope",
    "norm": "rmsnorm",
    "feedforward": "swiglu",
    "bias": False,
    "tie_embeddings": False,
}
PRESETS: dict[str, dict[str, Any]] = {
    # Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"
    "gpt2": {},
    # Touvron et al. 2023, "Llama 2": RoPE, RMSNorm, SwiGLU, no biases
    "llama": _LLAMA,
    # Qwen team 2024, "Qwen2 Technical Report": Llama with biases on queries, keys and values
    "qwen2": {**_LLAMA, "qkv_bias": True},
    # Qwen team 2025, "Qwen3 Technical Report": norms of queries and keys instead of those biases
    "qwen3": {**_LLAMA, "qk_norm": True},
    # Karpathy 2015, "The Unreasonable Effectiveness of Recurrent Neural Networks", with residuals
    "char_lstm": {
        "mixer": "lstm",
        "positions": "none",
        "feedforward": "none",
        "num_layers": 2,
        "tie_embeddings": False,
    },
}


class ModelConfig(Config):
    """Keys of every model configuration; a project's own model extends it."""

    context_length: int = Field(256, ge=2)  # tokens


class RopeScaling(Config):
    """RoPE scaling of Llama 3.1 to contexts longer than in pretraining.

    Frequencies with more than `high_frequency_factor` turns in the original context are kept, those
    with fewer than `low_frequency_factor` are divided by `factor`, with linear interpolation
    between.
    """

    type: Literal["llama3"] = "llama3"
    factor: float = Field(gt=0)
    low_frequency_factor: float = Field(1.0, gt=0)
    high_frequency_factor: float = Field(4.0, gt=0)
    original_context_length: int = Field(gt=0)

    @model_validator(mode="after")
    def _low_is_lower(self) -> RopeScaling:
        if self.low_frequency_factor >= self.high_frequency_factor:
            raise ValueError("low_frequency_factor must be below high_frequency_factor")
        return self


class DecoderConfig(ModelConfig):
    """A preset sets defaults; explicit keys override them.

    `layers: "mamba2 mamba2 attention"` is a pattern of mixers, tiled over the depth; `feedforwards` works
    the same way. `options: {mamba2: {state_size: 128}}` configures a mixer beyond the flat keys, see
    mixers/options.py. Name your own mixer as `package.module:Class`.
    """

    preset: Literal["gpt2", "llama", "qwen2", "qwen3", "char_lstm"] = "gpt2"
    num_layers: int = Field(4, gt=0)
    hidden_size: int = Field(128, gt=0)
    mixer: str = "attention"  # of every layer, unless `layers` names them
    layers: str | None = None
    options: dict[str, dict[str, Any]] = Field(default_factory=dict)
    num_heads: int = Field(4, gt=0)
    num_kv_heads: int | None = Field(None, gt=0)  # fewer than num_heads: grouped-query attention
    head_size: int | None = Field(None, gt=0)  # default: hidden_size / num_heads
    qk_norm: bool = False
    attention_soft_cap: float | None = Field(None, gt=0)  # scores are kept within it by a tanh
    positions: Literal["learned", "rope", "none"] = "learned"
    rope_theta: float = Field(10_000.0, gt=0)
    rope_scaling: RopeScaling | None = None
    feedforward: str = "mlp"  # of every layer, unless `feedforwards` ...
    feedforwards: str | None = None
    activation: Literal["gelu_tanh", "gelu", "relu_squared"] = "gelu_tanh"  # of the mlp
    intermediate_size: int | None = Field(None, gt=0)  # default: 4x hidden (mlp), 8/3x (swiglu)
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    norm_eps: float | None = Field(None, gt=0)  # default: 1e-5 (layernorm), 1e-6 (rmsnorm)
    bias: bool = True
    qkv_bias: bool | None = None  # of queries, keys and values; default: as `bias`
    tie_embeddings: bool = True
    causal: bool = True  # false: tokens also see later ones, as in masked diffusion
    dropout: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("preset", "gpt2") not in PRESETS:
            return values
        given, values = values, PRESETS[values.get("preset", "gpt2")] | values
        for pattern, single in (("layers", "mixer"), ("feedforwards", "feedforward")):
            names = values.get(pattern)
            if names is not None and len(set(str(names).split())) == 1:  # one name for all
                if given.get(single, names) not in (names, str(names).split()[0]):
                    raise ValueError(
                        f"{single}={given[single]} has no effect: {pattern}={names} names every layer"
                    )
                values = {**values, pattern: None, single: str(names).split()[0]}
        return values

    @model_validator(mode="after")
    def _options_fit(self) -> DecoderConfig:
        if self.mixer.isdigit():
            raise ValueError(f"layers names the mixers: write num_layers={self.mixer}")
        _check_names(self.mixers, MIXERS, "mixer")
        kinds = [kind for kind in self.feedforward_kinds if kind != "none"]
        _check_names(kinds, FEEDFORWARDS, "feed-forward layer")
        used = {*self.mixers, *kinds}
        for name in self.options:
            if name not in used:
                raise ValueError(
                    f"options.{name}: no layer is one; there are {', '.join(sorted(used))}"
                )
        for name in used:
            self.options_of(name)
        return self

    @model_validator(mode="after")
    def _shapes_fit(self) -> DecoderConfig:
        schemas = [_schema_of(name) for name in self.mixers]
        splits = any(getattr(schema, "splits_width", True) for schema in schemas)
        if splits and self.head_size is None and self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}"
            )
        if self.num_heads % (self.num_kv_heads or self.num_heads):
            raise ValueError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}"
            )
        one_way = [
            name
            for name, schema in zip(self.mixers, schemas, strict=True)
            if not getattr(schema, "sees_later", True)
        ]
        if one_way and not self.causal:
            raise ValueError(f"causal=false: a token of {one_way[0]} sees no later ones")
        if self.positions == "rope" and not any(
            getattr(schema, "takes_rope", True) for schema in schemas
        ):
            raise ValueError("rope rotates queries and keys: it needs mixer=attention")
        if (
            self.positions == "rope"
            and "latent_attention" not in self.mixers
            and self.size_of_heads % 2
        ):
            raise ValueError("rope needs an even head_size")
        if self.rope_scaling is not None and self.positions != "rope":
            raise ValueError("rope_scaling needs positions=rope")
        return self

    @property
    def mixers(self) -> list[str]:
        """The name of the mixer of each layer."""
        return _tile(self.layers or self.mixer, self.num_layers)

    @property
    def feedforward_kinds(self) -> list[str]:
        """The name of the feed-forward layer of each layer."""
        return _tile(self.feedforwards or self.feedforward, self.num_layers)

    @property
    def size_of_heads(self) -> int:
        """`head_size`, by default hidden_size / num_heads."""
        return self.head_size or self.hidden_size // self.num_heads

    def options_of(self, name: str) -> Any:
        """The validated options of a mixer or feed-forward layer."""
        return _schema_of(name).model_validate(self.options.get(name, {}))


def _schema_of(name: str) -> type[Config]:
    """The options of a layer; imports torch only for your own."""
    return OPTIONS[name] if name in OPTIONS else layer_class(name).Options


def _check_names(names: list[str], known: dict[str, str], what: str) -> None:
    for name in names:
        if name not in known and ":" not in name:
            hint = did_you_mean(name, [*known]) or "write package.module:Class for one of your own"
            raise ValueError(f"there is no {what} '{name}': {hint}")


def _tile(names: str, count: int) -> list[str]:
    """ "a b", 3 -> [a, b, a]"""
    words = names.split() or [""]
    return [words[index % len(words)] for index in range(count)]
