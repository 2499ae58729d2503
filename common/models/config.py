"""Configuration of a Decoder. Imports no torch, so that a wrong key is reported at once."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from common.config import Config
from common.errors import did_you_mean
from common.models.mixers.options import OPTIONS
from common.models.registry import FEEDFORWARDS, MIXERS, layer_class
from common.models.rope_scaling import RopeScaling

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
    # Black et al. 2022, "GPT-NeoX-20B"; Pythia (Biderman et al. 2023) is one
    "gpt_neox": {
        "positions": "rope",
        "rope_fraction": 0.25,
        "parallel_residual": True,
        "activation": "gelu",
        "tie_embeddings": False,
    },
    # OLMo team 2024, "2 OLMo 2 Furious": norms after the sublayers, and of queries and keys
    "olmo2": {**_LLAMA, "norm_placement": "reordered", "qk_norm": "projection", "norm_eps": 1e-5},
    # Hugging Face 2025, "SmolLM3": no positions in every fourth layer
    "smollm3": {
        **_LLAMA,
        "layers": "attention attention attention nope_attention",
        "tie_embeddings": True,
    },
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


class LoRAConfig(Config):
    """Low-rank adapters, see common/models/lora.py; all other weights are frozen."""

    rank: int = Field(8, gt=0)
    alpha: float = Field(16.0, gt=0)  # the adapters are multiplied by alpha / rank
    # Patterns of names of linear layers or of their ends: query_key_value, mixer.output, "*"
    targets: tuple[str, ...] = Field(("*",), min_length=1)
    dropout: float = Field(0.0, ge=0, lt=1)  # of the adapters' input
    # In which the frozen matrices are kept; auto: as they are stored
    base_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"


class DecoderConfig(ModelConfig):
    """A preset sets defaults; explicit keys override them.

    `layers: "mamba2 mamba2 attention"` is a pattern of mixers, tiled over the depth; `feedforwards` works
    the same way. `options: {mamba2: {state_size: 128}}` configures a mixer beyond the flat keys, see
    mixers/options.py. Name your own mixer as `package.module:Class`.
    """

    preset: Literal[
        "gpt2", "llama", "qwen2", "qwen3", "gpt_neox", "olmo2", "smollm3", "char_lstm"
    ] = "gpt2"
    num_layers: int = Field(4, gt=0)
    hidden_size: int = Field(128, gt=0)
    mixer: str = "attention"  # of every layer, unless `layers` names them
    layers: str | None = None
    options: dict[str, dict[str, Any]] = Field(default_factory=dict)
    num_heads: int = Field(4, gt=0)
    num_kv_heads: int | None = Field(None, gt=0)  # fewer than num_heads: grouped-query attention
    head_size: int | None = Field(None, gt=0)  # default: hidden_size / num_heads
    qk_norm: bool | Literal["projection"] = (
        False  # true: of each head, "projection": of all heads together
    )
    attention_scale: float | None = Field(None, gt=0)  # of scores; default: 1 / sqrt(head_size)
    attention_soft_cap: float | None = Field(None, gt=0)  # scores are kept within it by a tanh
    attention_gate: bool = (
        False  # heads are multiplied by sigmoid(W x) before the output projection
    )
    positions: Literal["learned", "rope", "none"] = "learned"
    rope_theta: float = Field(10_000.0, gt=0)
    rope_fraction: float = Field(1.0, gt=0, le=1)  # of each head; the rest is not rotated
    rope_scaling: RopeScaling | None = None
    feedforward: str = "mlp"  # of every layer, unless `feedforwards` ...
    feedforwards: str | None = None
    activation: Literal["gelu_tanh", "gelu", "relu_squared"] = "gelu_tanh"  # of mlp and geglu
    intermediate_size: int | None = Field(None, gt=0)  # default: 4x hidden (mlp), 8/3x (swiglu)
    norm: Literal["layernorm", "rmsnorm", "zero_centered_rmsnorm"] = "layernorm"
    # x + f(norm(x)), x + norm(f(x)) (OLMo 2), or x + norm(f(norm(x))) (Gemma 2)
    norm_placement: Literal["pre", "reordered", "sandwich"] = "pre"
    parallel_residual: bool = False  # x + mixer(norm(x)) + feedforward(norm(x)), as in GPT-NeoX
    norm_eps: float | None = Field(None, gt=0)  # default: 1e-5 (layernorm), 1e-6 (rmsnorm)
    bias: bool = True
    qkv_bias: bool | None = None  # of queries, keys and values; default: as `bias`
    tie_embeddings: bool = True
    embedding_scale: float | None = Field(None, gt=0)  # of token embeddings, not of the tied head
    logits_soft_cap: float | None = Field(None, gt=0)  # logits are kept within it by a tanh
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
            and (self.rope_size % 2 or not self.rope_size)
        ):
            raise ValueError(f"rope needs an even head_size, rotated are {self.rope_size}")
        if self.rope_scaling is not None and self.positions != "rope":
            raise ValueError("rope_scaling needs positions=rope")
        if self.parallel_residual and self.norm_placement != "pre":
            raise ValueError("parallel_residual needs norm_placement=pre")
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

    @property
    def rope_size(self) -> int:
        """The dimensions of each head that RoPE rotates."""
        return int(self.size_of_heads * self.rope_fraction)

    def hidden_units(self, kind: str) -> int:
        """`intermediate_size` of a dense feed-forward layer, by default 4x the width (mlp), or 8/3x, which has the
        parameters of a 4x MLP, rounded up to a multiple of 32."""
        usual = 4 * self.hidden_size if kind == "mlp" else -(-self.hidden_size * 8 // (3 * 32)) * 32
        return self.intermediate_size or usual

    def hidden_units_of_experts(self) -> int:
        """Of each expert of `moe`; by default top_k of them are as large as a SwiGLU."""
        options = self.options_of("moe")
        usual = -(-self.hidden_size * 8 // (3 * 32 * options.top_k)) * 32
        size: int = options.expert_size or self.intermediate_size or usual
        return size

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
